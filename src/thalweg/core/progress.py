"""The progress bar of the command line: steps, time left and some figures."""

from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SHOWN = ("loss", "space", "time", "gap", "gradient_norm")
SMOOTHING = 0.9
LINES = 20  # where standard error is no terminal, this many lines in all


class Bar:
    """Shows a run's progress on standard error, with moving averages of the figures.

    `folder`: the run's, if it has one.
    """

    def __init__(self, folder: Path | None):
        self.console = Console(stderr=True)
        self.folder = folder
        self.figures: dict[str, float] = {}
        self.total, self.next_line = 0, 0

    def start(self, total: int, done: int) -> None:
        """Show an empty (or resumed) bar."""
        self.total = total
        kept = "nothing is written" if self.folder is None else f"preview and checkpoints in {self.folder}"
        self.console.print(f"{total:,} steps planned, {done:,} done; {kept}")
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=total, completed=done, text="")
        self.bar.start()

    def advance(self, step: int, figures: dict[str, float]) -> None:
        """Move to a step."""
        for name in SHOWN:
            if name in figures:
                old = self.figures.get(name, figures[name])
                self.figures[name] = SMOOTHING * old + (1 - SMOOTHING) * figures[name]
        text = "  ".join(f"{name} {value:.3g}" for name, value in self.figures.items())
        self.bar.update(self.task, completed=step, text=text)
        if not self.console.is_terminal and step >= self.next_line:
            self.next_line = step + max(self.total // LINES, 1)
            self.console.print(f"step {step:,} of {self.total:,}  {text}", highlight=False)

    def stop(self) -> None:
        """Stop the bar, which stays on the screen."""
        self.bar.stop()
