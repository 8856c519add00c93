"""What `thalweg score` and `thalweg detect score` share where many files are scored into a folder."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thalweg.cli import bad_rows, console
from thalweg.core.errors import StopSignal, UserError

if TYPE_CHECKING:
    from thalweg.scale.score_files import Kind, Scored
    from thalweg.scale.scorers import Options

Data = Annotated[
    str,
    typer.Argument(metavar="INPUT", help="A file; with a folder as --out also a folder or a quoted pattern."),
]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Who scores into a folder: this process, or workers of Ray (`thalweg[cluster]`)."),
]
Workers = Annotated[int | None, typer.Option(help="Workers of Ray; one a core if not given.", min=1)]
Address = Annotated[
    str | None,
    typer.Option(help="A running cluster of Ray; one is started here if not given.", envvar="RAY_ADDRESS"),
]
BlockRows = Annotated[
    int | None,
    typer.Option(help="Rows that are scored at once and lost with a worker; by the columns if not given.", min=1),
]
OnlyChanged = Annotated[
    bool,
    typer.Option(
        "--only-changed", help="Rows were corrected in their places: score again only the parts whose rows changed."
    ),
]
EVERY = 30.0  # seconds between lines of progress


def is_folder(out: str) -> bool:
    """Whether an output is a folder, by its look or because it is one."""
    return "://" in out or out.endswith("/") or Path(out).is_dir() or not Path(out).suffix


def are_many(data: str, out: str, engine: str) -> bool:
    """Whether scores go to a folder of parts. UserError where they must, and `out` is a file."""
    if is_folder(out):
        return True
    from thalweg.scale import addresses
    from thalweg.scale.sources import KINDS

    path = Path(data)
    tables = path.is_dir() and any(each.suffix.lower() in KINDS for each in path.iterdir())
    if engine == "ray" or tables or addresses.is_remote(data) or addresses.is_pattern(data):
        what = "with --engine ray" if engine == "ray" else f"for {data}, which may be many files"
        raise UserError(f"must be a folder {what}", argument="--out", value=out, hint="such as -o scores/")
    return False


def anywhere(run: Path | str) -> str:
    """A run's folder as every process finds it; an id of the Hub as it is."""
    return os.path.abspath(run) if Path(run).exists() else str(run)


class _Progress:
    """A line now and then, on standard error."""

    def __init__(self):
        self.done = self.total = 0
        self.told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            console.say(f"{done} of {total} parts")


def score(
    kind: "Kind",
    options: "Options",
    data: str,
    out: str,
    *,
    engine: Literal["local", "ray"],
    workers: int | None,
    address: str | None,
    block_rows: int | None,
    only_changed: bool,
) -> "Scored":
    """Score files into a folder, and say how to go on where that is stopped."""
    from thalweg.scale import addresses
    from thalweg.scale.score_files import Engine, score_files

    if out.startswith("memory://"):
        raise UserError("must outlive this command", argument="--out", value=out, hint="name a folder or a store")
    if not addresses.is_remote(out):
        console.writable_folder(Path(addresses.plain(out)))
    progress = _Progress()
    how: Any = {"engine": Engine(engine, workers, address), "block_rows": block_rows, "only_changed": only_changed}
    try:
        with bad_rows.offering_skip_bad(options.skip_bad):
            return score_files(kind, options, data, out, **how, advance=progress)
    except StopSignal:
        if progress.total:
            console.say(f"{progress.done} of {progress.total} parts in {out}; to go on, give the same command")
        raise


def without_scores(num_left_out: int) -> str:
    """How many rows of the output have no scores, in a few words; empty for none."""
    return f", {num_left_out} of them without scores" if num_left_out else ""


def check_options(engine: str, workers: int | None, block_rows: int | None, only_changed: bool, *, many: bool) -> None:
    """UserError for an option that has no effect."""
    given = {"--workers": workers} if engine == "local" else {}
    if not many:
        given |= {"--block-rows": block_rows, "--only-changed": only_changed or None}
    wrong = next((name for name, value in given.items() if value is not None), None)
    if wrong is not None:
        what = "--engine ray" if wrong == "--workers" else "a folder as --out"
        raise UserError(f"has no effect without {what}", argument=wrong, value=given[wrong], hint="leave it out")
