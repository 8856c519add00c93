"""The command `thalweg serve`."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Trust
from thalweg.core.errors import UserError

EXAMPLE = "Example: `thalweg serve runs/digits --port 8000`"


def serve(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `thalweg train` or others wrote.")],
    name: Annotated[
        list[str] | None, typer.Option(help="A model's name for clients, one a run in order; else the folder's.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file of bearer tokens, one a line; else THALWEG_TOKEN.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve others than loopback without a token.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name that requests may call this service by; * for any; repeatable.")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request's body.")] = 8 * 2**20,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 1024,
    queue: Annotated[int, typer.Option(min=1, help="Rows that may wait; beyond, requests are answered 429.")] = 1024,
    deadline: Annotated[float, typer.Option(help="Seconds after which a waiting request is dropped.")] = 30.0,
    drain: Annotated[float, typer.Option(help="Seconds that accepted requests have to end after SIGTERM.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a computation.")] = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that compute at the same time; else by measurement.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The page for people.")] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    trust: Trust = None,
    device: Device = "auto",
) -> None:
    """Score over HTTP: Open Inference Protocol v2, plain routes, and a page."""
    _require_extra()
    from thalweg.serve.listener import bound
    from thalweg.serve.safety.tokens import read_tokens, require_token
    from thalweg.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        tokens=read_tokens(token_file),
        insecure=insecure,
        allowed_hosts=tuple(allowed_host or ()),
        max_body=max_body,
        max_batch=max_batch,
        queue=queue,
        deadline=deadline,
        drain=drain,
        threads=threads,
        processes=processes,
        page=page,
    )
    require_token(settings)
    names = _names(runs, name or [])
    listener = bound(settings.host, settings.port)  # what cannot work is said before the models are loaded
    from thalweg.serve.app import create_app
    from thalweg.serve.loading import load_models
    from thalweg.serve.server import flush_and_exit, run

    try:
        models, versions = load_models(dict(zip(names, runs, strict=True)), device=device)
    except UserError:
        listener.close()
        raise
    app = create_app(models, settings, versions=versions)
    code = run(app, settings, say=console.say, open_page=open_page, listener=listener)
    if app.state.engine.busy:  # a thread inside torch cannot be stopped, and Python's own end would crash on it
        flush_and_exit(code)
    raise typer.Exit(code)


def _require_extra() -> None:
    """UserError where the packages of the extra are not there."""
    from importlib.util import find_spec

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            hint = "pip install 'thalweg[serve]'"
            raise UserError(f"needs the package {package}", argument="thalweg serve", hint=hint)


def _names(runs: list[Path], names: list[str]) -> list[str]:
    """A name for each run: the folder's, or those given."""
    if names and len(names) != len(runs):
        raise UserError(f"must be given once a run, {len(runs)} times", argument="--name")
    found = names or [run.resolve().name for run in runs]
    for name in found:
        if not name or len(name) > 100 or not all(c.isalnum() or c in "._-" for c in name):
            hint = "pass --name NAME"
            raise UserError("must be letters, digits, . _ and -", argument="--name", value=name, hint=hint)
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise UserError("must be another name for each run", argument="--name", value=twice, hint="pass --name twice")
    return found
