"""Runs side by side on a terminal: one frame, or a view that is drawn anew until Ctrl-C."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from thalweg.cli.terminal.panel import SOFT, DrawingArea, panel
from thalweg.run.status import Follower, Status

NARROWEST = 58  # columns of a panel beside another one
SHORTEST = 12  # lines of a panel under another one, where the view has a height


def frame(statuses: Sequence[Status], console: Console, height: int | None) -> RenderableType:
    """All panels, as many beside each other as the width takes; those that the height leaves out are counted."""
    across = min(max(console.width // NARROWEST, 1), len(statuses))
    number, each = len(statuses), None
    if height is not None:
        down = min(-(-number // across), max(height // SHORTEST, 1))
        number, each = min(number, down * across), height // down
    width = console.width // across
    colours = console.color_system is not None and not console.no_color
    paper = DrawingArea(width, each, console.options.ascii_only, colours)
    table = Table.grid(padding=0)
    for _ in range(across):
        table.add_column(width=width, no_wrap=True)
    for i in range(0, number, across):
        table.add_row(*(panel(status, paper) for status in statuses[i : i + across]))
    if number == len(statuses):
        return table
    left = ", ".join(status.folder.name for status in statuses[number:])
    return Group(table, Text(f"no room for {left}: make the window larger"[: console.width], SOFT))


def follow(followers: Sequence[Follower], console: Console, every: float) -> None:
    """Draw the runs every so many seconds on the whole screen until Ctrl-C; the last frame stays behind."""
    statuses = [each.status() for each in followers]
    view = Live(console=console, screen=True, auto_refresh=False, transient=True)
    with suppress(KeyboardInterrupt), _ctrl_c_raises(), view:
        while True:
            keys = Text("Ctrl-C ends the view; the runs go on"[: console.width], SOFT)
            view.update(Group(frame(statuses, console, max(console.height - 2, 4)), keys), refresh=True)
            time.sleep(every)
            statuses = [each.status() for each in followers]
    console.print(frame(statuses, console, None))


@contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, not what `cli.console` turns into exit code 130: here it is the usual end."""
    try:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
