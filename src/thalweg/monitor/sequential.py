"""The sequential test of a run's figures: has a figure become worse than it was, look after look?

Samples of a run in training always differ from the data, so a figure is compared with the run's own best earlier
window: the largest median of `WINDOW` looks in a row. Held-out data give the scale. With v the figure, turned so that
more is better, m and s its mean and deviation over held-out sets of the same size, and b the best earlier window,

    v' = min(v, m),     d = (b - v' - tolerance) / max(SPREAD s, e),     S <- max(0, S + clip(d, -CAP, CAP) - DRIFT),

the one-sided cumulative sum of Page (1954). Samples better than the data's own do not raise the bar (the minimum).
`e` is the run's own deviation from look to look, by the median absolute difference of successive looks. An alarm begins
where S reaches `LIMIT`, which takes two looks or more (the cap), and ends where S is below `CLEAR` (hysteresis).

The constants were set on healthy runs (docs/experiments/monitor.md), on other runs than those that the false-alarm rate
was measured on. After an action S is 0, and it stays 0 for `GRACE` looks: a run needs time to recover.
"""

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from thalweg.monitor.figure import FIGURES, Figure

WINDOW, CHANGES, GRACE = 3, 12, 4
SPREAD, CAP, DRIFT, LIMIT, CLEAR = 1.0, 4.0, 1.5, 4.0, 1.0
MAD_TO_DEVIATION = 1.4826 / 2**0.5  # of independent normal looks, whose differences have twice their variance
LEAST_DEVIATION = 1e-3  # where held-out sets all have the same figure

TOLERANCES = {  # a loss within these is no fault, as training goes on: samples become sharper, chains wander
    "vendi": 0.1, "coverage": 0.1, "histogram": 0.1, "duplicates": 0.05, "lineages": 0.05, "density": 0.15,
    "nearest_train": 0.15,
}  # fmt: skip

ReferenceFigures = Mapping[str, tuple[float, float]]  # mean and deviation of each figure over held-out sets
Memory = dict[str, Any]  # a tree of numbers and lists, as a checkpoint holds it


class TestResult(NamedTuple):
    """What the test says after a look.

    Args:
        suspicion: S / LIMIT of each figure, at most 1.
        alarm: The figure whose alarm has begun at this look, that with the largest d; None: no alarm has begun.
        going_on: The figures whose alarm has begun and not ended.
        best: The best earlier window of each figure, as the figure is reported; None: none yet.
    """

    suspicion: dict[str, float]
    alarm: str | None
    going_on: list[str]
    best: dict[str, float | None]

    @property
    def calm(self) -> bool:
        """Whether no figure is suspicious."""
        return not any(self.suspicion.values())


def start() -> Memory:
    """The memory before the first look."""
    return {"grace": 0, "figures": {}}


def update(memory: Memory, values: Mapping[str, float], reference: ReferenceFigures) -> tuple[Memory, TestResult]:
    """The memory after a look with these figures, and what is found. Figures without a reference are passed over."""
    grace = memory["grace"]
    tracks, excess = {}, {}
    for name, value in values.items():
        if name in FIGURES and name in reference:
            before = memory["figures"].get(name) or {
                "recent": [],
                "changes": [],
                "best": None,
                "sum": 0.0,
                "alarm": False,
            }
            tracks[name], excess[name] = _track(before, FIGURES[name], value, reference[name], counts=grace == 0)
    begun = [name for name, track in tracks.items() if track["alarm"] and not _alarmed(memory, name)]
    found = TestResult(
        suspicion={name: min(1.0, track["sum"] / LIMIT) for name, track in tracks.items()},
        alarm=max(begun, key=lambda name: excess[name], default=None),
        going_on=[name for name, track in tracks.items() if track["alarm"]],
        best={name: _turned(_best(memory, name), FIGURES[name]) for name in tracks},
    )
    return {"grace": max(0, grace - 1), "figures": {**memory["figures"], **tracks}}, found


def after_action(memory: Memory) -> Memory:
    """The memory after the run was changed: no suspicion, and none for `GRACE` looks."""
    figures = {name: {**track, "sum": 0.0, "alarm": False, "recent": []} for name, track in memory["figures"].items()}
    return {"grace": GRACE, "figures": figures}


def _track(
    before: Memory, figure: Figure, value: float, reference: tuple[float, float], *, counts: bool
) -> tuple[Memory, float]:
    """The memory of one figure after a look, and d (0 before there is a best window)."""
    mean, deviation = reference
    sign = 1.0 if figure.worse == "low" else -1.0
    v = min(sign * value, sign * mean)
    recent, changes = before["recent"], before["changes"]
    d, total = 0.0, before["sum"]
    if before["best"] is not None and counts:
        own = MAD_TO_DEVIATION * statistics.median(abs(c) for c in changes) if len(changes) >= WINDOW else 0.0
        d = (before["best"] - v - TOLERANCES[figure.name]) / max(SPREAD * max(deviation, LEAST_DEVIATION), own)
        total = min(max(0.0, total + min(max(d, -CAP), CAP) - DRIFT), LIMIT + CAP)
    best = before["best"]
    if len(recent) == WINDOW - 1:
        window = statistics.median([*recent, v])
        best = window if best is None else max(best, window)
    alarm = total >= LIMIT or (before["alarm"] and total > CLEAR)
    changes = [*changes, v - recent[-1]][-CHANGES:] if recent else changes
    return {
        "recent": [*recent, v][-(WINDOW - 1) :], "changes": changes, "best": best, "sum": total, "alarm": alarm
    }, d  # fmt: skip


def _alarmed(memory: Memory, name: str) -> bool:
    return bool(memory["figures"].get(name, {}).get("alarm"))


def _best(memory: Memory, name: str) -> float | None:
    return memory["figures"].get(name, {}).get("best")


def _turned(best: float | None, figure: Figure) -> float | None:
    return None if best is None else best if figure.worse == "low" else -best
