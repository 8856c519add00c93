"""The command `thalweg watch`: runs, live on the terminal. It reads their folders only, and does not load torch."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import console
from thalweg.cli.options import Json

if TYPE_CHECKING:
    from thalweg.run.status import Status

EXAMPLE = "Example: `thalweg watch runs/digits`"


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, going on or ended.")],
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and end; so where output is no terminal.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between frames.", min=0.1, max=3600)] = 2.0,
    as_json: Json = False,
) -> None:
    """Show how runs go: progress, signals, the monitor's figures and verdicts, the newest samples.

    The view ends by Ctrl-C, with exit code 0; runs are not touched.
    """
    from thalweg.run.status import Follower

    followers = [Follower(folder) for folder in runs]
    if as_json:
        console.emit({"runs": [as_plain(each.status()) for each in followers]}, as_json)
        return
    from rich.console import Console

    from thalweg.cli.terminal.screen import follow, frame

    screen = Console()
    if once or not screen.is_terminal or screen.is_dumb_terminal:
        screen.print(frame([each.status() for each in followers], screen, None))
    else:
        follow(followers, screen, every)


def as_plain(status: "Status") -> dict[str, Any]:
    """How a run stands as an object of JSON: the last row of the log, the last look, and every alarm or action."""
    last = status.looks[-1] if status.looks else None
    told = [look for look in status.looks if look.alarm or look.action]
    return {
        "run": str(status.folder),
        "state": status.state,
        "data": status.data,
        "recipe": status.recipe,
        "step": status.step,
        "total": status.total,
        "seconds": status.seconds,
        "steps_per_second": status.speed,
        "seconds_left": status.left,
        "checkpoint": status.saved,
        "rollbacks": status.rollbacks,
        "metrics": _finite(status.rows[-1]) if status.rows else None,
        "looks": len(status.looks),
        "monitor": _look(last) if last else None,
        "verdicts": [_look(look) for look in told],
        "preview": str(status.preview) if status.preview else None,
    }


def _look(look: Any) -> dict[str, Any]:
    marks = {name: look.mark(name) for name in look.figures}
    return {**look._asdict(), "reference": {k: [*v] for k, v in look.reference.items()}, "marks": marks}


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the log, null for a number that is not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
