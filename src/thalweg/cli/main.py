"""The command line: train, watch, sample, score, classify, detect, inpaint, rerank, landscape, evaluate, bench.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong (one line: what, where, how to mend), 130 and 143 stopped by
Ctrl-C and SIGTERM with the run saved. With `--json` the result is one JSON object on standard output; progress and
messages go to standard error. Nothing heavy is imported before a command runs, so `--help` is quick.
"""

import logging
import os
import pkgutil
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import thalweg.cli
from thalweg.cli import console
from thalweg.cli.options import refuse_empty_names

# How often a waiting thread of libgomp looks before it sleeps. By default it looks so long that beside two busy
# processes it takes the cores from those it waits for. Where it sleeps at once, steps alone take a third more time.
THREADS = {"GOMP_SPINCOUNT": "2000"}
FIRST = (
    "train",
    "watch",
    "sample",
    "score",
    "evaluate",
    "bench",
)  # in the list of `thalweg --help`; the others by name


class _Checked(TyperGroup):
    """The group of all commands, each of which refuses an empty name."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        refuse_empty_names(self)


app = typer.Typer(
    cls=_Checked,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Energy-based models for work: train an energy, sample it, score with it, measure it.",
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from thalweg import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the library's log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Energy-based models for work."""
    import warnings

    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


def add_commands(app: typer.Typer) -> None:
    """Add each module of this package that has an `app` of sub-commands, or `EXAMPLE` and a function of its name."""
    names = [info.name for info in pkgutil.iter_modules(thalweg.cli.__path__) if info.name != "main"]
    for name in sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        members = vars(import_module(f"thalweg.cli.{name}"))
        if isinstance(members.get("app"), typer.Typer):
            app.add_typer(members["app"], name=name)
        elif "EXAMPLE" in members:
            app.command(epilog=members["EXAMPLE"])(members[name])


add_commands(app)


def main() -> None:
    """The entry point."""
    for name, value in THREADS.items():  # read once, when torch is imported, which no command has done yet
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault(name, value)
    console.run(app)


if __name__ == "__main__":
    main()
