"""What a run says while it works: `metrics.jsonl`, TensorBoard events, a progress bar with the figures that matter.

`metrics.jsonl` has one JSON object a logged step. On resuming, rows after the checkpoint are cut off, so the file reads
as if the run had never stopped.
"""

import json
import logging
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from thalweg.core.store import write_bytes

NAME = "metrics.jsonl"
log = logging.getLogger("thalweg")


class Progress(Protocol):
    """What the trainer tells a progress bar; the command line gives a rich one."""

    def start(self, total: int, done: int) -> None: ...

    def advance(self, step: int, figures: dict[str, float]) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """The progress of library calls: none."""

    def start(self, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, step: int, figures: dict[str, float]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Tracker:
    """Writes the metrics of a run from step `start` on; later rows left by a killed process are dropped."""

    def __init__(self, folder: Path, start: int, *, tensorboard: bool = True):
        self.path = folder / NAME
        rows = [row for row in read_metrics(folder) if row["step"] <= start] if start else []
        write_bytes(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self.file = self.path.open("a", encoding="utf-8")
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)

    def write(self, step: int, seconds: float, metrics: dict[str, Tensor | float]) -> dict[str, float]:
        """One row; the tensors become numbers here and nowhere earlier."""
        figures = {name: float(value) for name, value in metrics.items()}
        self.file.write(json.dumps({"step": step, **figures, "seconds": round(seconds, 3)}) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(name, value, step)
        return figures

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        if self.writer is not None:
            self.writer.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a last line cut short by a kill is passed over."""
    path = folder / NAME
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            log.debug("%s: passed over a line that is no row", path)
    return rows
