"""How a run stands, read from its folder by another process: nothing is written there, and no lock is taken.

A run is finished once `manifest.json` is there. Until then it is running where a process has the folder locked (Linux
lists locks) or has written to it lately. Otherwise it has stopped, or diverged: its last figures are not finite, or
beyond the guard's limits, or the monitor has ended it. torch is not imported.
"""

import math
import os
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from thalweg.core.errors import UserError
from thalweg.core.json_lines import JsonLines
from thalweg.core.store import MANIFEST, read_json
from thalweg.monitor.history import History, Look

State = Literal["running", "finished", "stopped", "diverged", "gone"]
LOCKS = Path("/proc/locks")
BOUNDS = {  # signal: the guard's setting, as `training.guard.LIMITS` has them, whose module needs torch
    "gap": "max_gap",
    "diverged": "max_diverged",
    "clamped": "max_clamped",
    "chain_grad_norm": "min_slope",
    "spread": "min_spread",
    "lineages": "min_lineages",
}
PATIENCE = 10.0, 60.0  # least seconds without a new file till a run has stopped: where locks are listed, where not
STOPPED = "stopped"  # the action of a look that ended the run
ROWS = 20  # of the log, from which the speed is computed
WRITTEN = ("config.json", "plan.json", "metrics.jsonl", "monitor.jsonl", "preview.png", "preview.txt", "checkpoints")


class Status(NamedTuple):
    """How a run stands."""

    folder: Path
    state: State
    data: str
    recipe: str | None
    command: str | None  # that began it
    step: int
    total: int | None  # steps; None before the plan
    seconds: float  # of training
    speed: float | None  # steps a second
    age: float  # seconds since the run last wrote
    saved: int | None  # the step of the newest checkpoint
    rollbacks: int  # of the guard, as of that checkpoint
    rolled_back: int | None  # at which step the last one was
    rows: list[dict[str, Any]]  # of metrics.jsonl
    looks: list[Look]
    preview: Path | None  # the newest picture of samples, or file of texts
    preview_step: int | None  # where it is the monitor's

    @property
    def left(self) -> float | None:
        """Seconds of training to the end of the plan, at the present speed."""
        return (self.total - self.step) / self.speed if self.total is not None and self.speed else None


class Follower:
    """Reads one run folder again and again. UserError unless it is the folder of a training."""

    def __init__(self, folder: Path):
        require_run(folder)
        self.folder, self.history = folder, History(folder)
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._config, self._plan, self._checkpoint = (_Json() for _ in range(3))

    def status(self) -> Status:
        """How the run stands now."""
        config, plan = self._config.read(self.folder / "config.json"), self._plan.read(self.folder / "plan.json")
        rows, looks, run = self._metrics.read(), self.history.looks(), _mapping(config.get("run"))
        saved, rollbacks, rolled_back = self._of_checkpoint()
        preview, preview_step = self._preview()
        train, data = _mapping(run.get("train")), _mapping(run.get("data"))
        written = max((_changed(self.folder / name) for name in WRITTEN), default=0.0)
        last = rows[-1] if rows else {}
        return Status(
            folder=self.folder,
            state=self._state(rows, looks, _mapping(train.get("guard")), time.time() - written),
            data=str(data.get("name", "")),
            recipe=config.get("recipe"),
            command=config.get("command"),
            step=max(last.get("step", 0), saved or 0),  # a stopped run saves the step that is not logged
            total=plan.get("num_steps") or train.get("steps"),
            seconds=float(last.get("seconds", 0.0)),
            speed=_speed(rows),
            age=max(time.time() - written, 0.0),
            saved=saved,
            rollbacks=rollbacks,
            rolled_back=rolled_back,
            rows=rows,
            looks=looks,
            preview=preview,
            preview_step=preview_step,
        )

    def _state(self, rows: list[dict[str, Any]], looks: list[Look], guard: Mapping[str, Any], age: float) -> State:
        if not (self.folder / "config.json").is_file():
            return "gone"
        if (self.folder / MANIFEST).is_file():
            return "finished"
        locked = is_locked(self.folder)
        gaps = [b.get("seconds", 0.0) - a.get("seconds", 0.0) for a, b in pairwise(rows[-ROWS:])]
        patience = max(PATIENCE[locked is None], 5 * median(gaps or [0.0]))
        if locked or age < patience:
            return "running"
        ended = bool(looks) and looks[-1].action == STOPPED
        return "diverged" if ended or (rows and _is_beyond(rows[-1], guard)) else "stopped"

    def _of_checkpoint(self) -> tuple[int | None, int, int | None]:
        """The step of the newest checkpoint, and of the guard's memory in it the rollbacks and the step of the last."""
        path = max((self.folder / "checkpoints").glob("step-*/state.json"), default=None)
        if path is None:
            return None, 0, None
        tree = self._checkpoint.read(path)
        parts = dict(_mapping(tree.get("tree")).get("dict") or ())
        guard = _mapping(parts.get("guard"))
        memory: dict[str, Any] = dict(zip(guard.get("fields") or (), guard.get("tuple") or (), strict=False))
        rollbacks = memory.get("rollbacks") or 0
        return tree.get("step"), rollbacks, memory.get("acted") if rollbacks else None

    def _preview(self) -> tuple[Path | None, int | None]:
        """The newest picture; that of the monitor with its step."""
        found = [(_changed(path), path, None) for path in (self.folder / n for n in ("preview.png", "preview.txt"))]
        found += [(_changed(path), path, step) for step, path in [*self.history.pictures().items()][-1:]]
        changed, path, step = max(found, key=lambda each: each[0])
        return (path, step) if changed else (None, None)


class _Json:
    """The object in a JSON file, read again where the file has changed."""

    def __init__(self) -> None:
        self._key, self._found = (Path(), 0), dict[str, Any]()

    def read(self, path: Path) -> dict[str, Any]:
        """The object; what was there before where it cannot be read now, as between two checkpoints."""
        try:
            key = path, os.stat(path).st_mtime_ns
            if key != self._key:
                self._found, self._key = dict(_mapping(read_json(path))), key
        except (OSError, UserError):
            pass
        return self._found


def require_run(folder: Path) -> None:
    """UserError unless a folder is that of a training, begun or finished."""
    if not folder.exists():
        raise UserError("no such folder", argument=str(folder), hint="check the path, or begin the run first")
    if not folder.is_dir():
        raise UserError("must be a run folder, and is a file", argument=str(folder), hint="name its folder")
    path = folder / "config.json"
    if not path.is_file():
        runs = sorted(inner.parent.name for inner in folder.glob("*/config.json"))
        what = "holds nothing" if not any(folder.iterdir()) else "has no config.json"
        hint = f"name a run in it: {folder / runs[0]}" if runs else "name a folder that `thalweg train` wrote"
        raise UserError(f"must be a run folder, and {what}", argument=str(folder), hint=hint)
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(_mapping(config.get("run")).get("train"), dict):
        text = "must be the folder of a training, and is of another kind"
        raise UserError(text, argument=str(folder), hint="name a folder that `thalweg train` wrote")


def is_locked(folder: Path) -> bool | None:
    """Whether a process has locked a run folder; None where the system lists no locks.

    The lock itself is not tried: to take it even for a moment could turn away a run that begins.
    """
    try:
        found, lines = folder.stat(), LOCKS.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 4892 fe:00:5506319 0 EOF
        words = line.split()
        if len(words) < 6 or words[1] != "FLOCK" or words[3] != "WRITE":
            continue
        where, _, inode = words[5].rpartition(":")
        # file systems without a device of their own have another number in the list than in `stat`
        if inode == str(found.st_ino) and (where == device or not os.major(found.st_dev)):
            return True
    return False


def _is_beyond(row: Mapping[str, Any], guard: Mapping[str, Any]) -> bool:
    """Whether a row of the log has a figure that is not finite, or one that the guard does not allow."""
    for name, value in row.items():
        if not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            return True
        bound, size = guard.get(BOUNDS.get(name, "")), abs(value)
        if not isinstance(bound, int | float) or guard.get("policy") == "warn":
            continue
        if size < bound if BOUNDS[name].startswith("min") else size > bound:
            return True
    return False


def _speed(rows: list[dict[str, Any]]) -> float | None:
    """Steps a second of training over the last rows."""
    some = [(row["step"], row["seconds"]) for row in rows[-ROWS:] if isinstance(row.get("seconds"), int | float)]
    if len(some) < 2 or some[-1][1] <= some[0][1]:
        return None
    return (some[-1][0] - some[0][0]) / (some[-1][1] - some[0][1])


def _changed(path: Path) -> float:
    """When a file was last written, 0 where there is none."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
