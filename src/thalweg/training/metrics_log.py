"""The metrics of a run: `metrics.jsonl`, TensorBoard events, a progress bar.

`metrics.jsonl` has one JSON object a logged step. On resuming, rows after the checkpoint are cut off, so the file reads
as if the run had never stopped.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from torch import Tensor

from thalweg.core.store import write_bytes

NAME = "metrics.jsonl"
log = logging.getLogger("thalweg")


class Progress(Protocol):
    """A progress bar; the command line has one of rich."""

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


class MetricsLog:
    """Writes the metrics of a run from step `start` on; later rows of a killed process are dropped.

    Where the log cannot be written, as on a full disk, one warning is logged and the training goes on.
    """

    def __init__(self, folder: Path, start: int, *, tensorboard: bool = True):
        self.path = folder / NAME
        rows = [row for row in read_metrics(folder) if row["step"] <= start] if start else []
        write_bytes(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self.file: TextIO | None = self.path.open("a", encoding="utf-8")
        self.writer = _events(folder / "tensorboard", start) if tensorboard else None

    def write(self, step: int, seconds: float, metrics: dict[str, Tensor | float]) -> dict[str, float]:
        """One row; the tensors become numbers here and nowhere earlier."""
        figures = {name: float(value) for name, value in metrics.items()}
        self._file(lambda file: file.write(json.dumps({"step": step, **figures, "seconds": round(seconds, 3)}) + "\n"))
        self._events(lambda writer: writer.write(step, figures))
        return figures

    def close(self) -> None:
        """Flush and close both."""
        self._file(lambda file: file.close())
        self._events(lambda writer: writer.file.close())
        self.file = self.writer = None

    def _file(self, use: Callable[[TextIO], object]) -> None:
        if self.file is None:
            return
        try:
            use(self.file)
            if not self.file.closed:
                self.file.flush()
        except OSError as error:
            log.warning("%s: not written any more (%s); the training goes on", self.path, error.strerror)
            with suppress(OSError):  # closing tries once more to write what is left
                self.file.close()
            self.file = None

    def _events(self, use: Callable[["_Events"], object]) -> None:
        if self.writer is None:
            return
        try:
            use(self.writer)
        except OSError as error:
            log.warning("TensorBoard's events are not written any more (%s); the training goes on", error.strerror)
            with suppress(OSError):
                self.writer.file.close()
            self.writer = None


class NoLog:
    """The log of a rank other than 0: nothing is written."""

    def write(self, step: int, seconds: float, metrics: dict[str, Tensor | float]) -> dict[str, float]:
        """No figures."""
        return {}

    def close(self) -> None:
        """Nothing."""


class _Events:
    """TensorBoard's event file, written in the calling thread, since its own writer fails in another one."""

    def __init__(self, folder: Path, start: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event = Event
        folder.mkdir(exist_ok=True)
        self.file = (folder / f"events.out.tfevents.{time.time_ns()}").open("wb")
        self.records = RecordWriter(self.file)
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if start:  # TensorBoard then drops events of a killed process after this step
            log_start = SessionLog(status=SessionLog.SessionStatus.START)
            self._put(Event(wall_time=time.time(), step=start + 1, session_log=log_start))

    def write(self, step: int, figures: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._put(self.event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _put(self, event: Any) -> None:
        self.records.write(event.SerializeToString())
        self.file.flush()


def _events(folder: Path, start: int) -> _Events | None:
    try:
        return _Events(folder, start)
    except OSError as error:
        log.warning("%s: no events for TensorBoard (%s); the training goes on", folder, error.strerror)
        return None


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a last line that is incomplete after a kill is skipped."""
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
            log.debug("%s: skipped a line that is no row", path)
    return rows
