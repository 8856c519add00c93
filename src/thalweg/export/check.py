"""Whether a written graph gives the library's own numbers: the check that each export must pass.

An energy agrees where it differs by `TOLERANCE` of itself, or of 1 nat where it is smaller. An energy with steps, as
that of tables is one of ranks, may fall on the other side of a step by the rounding of either program. So a row that
differs by more agrees where the graph's energy lies within what the library's own rounding spans (`Program.spans`); at
most `STEPS` of the rows may, and of the normal rows among them. Random rows lie far from these where a column spans
many powers of ten, so they alone would not show that each normal row is at a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from thalweg.bundle import conformal
from thalweg.bundle.exportable import Arrays, Program
from thalweg.bundle.servable import NUMPY, Calibrated, Servable, TensorSpec
from thalweg.core.errors import UserError
from thalweg.export.rows import hostile_rows, random_rows

TOLERANCE = 1e-4
STEPS = 0.05  # share of rows that may lie at a step, up to two standard errors of a count
MEND = "take logarithms of columns whose values span many powers of ten, or leave far outliers out; fit again"
NORMAL = 0.1  # share of the random rows that are normal ones as they are
P_VALUES = 1e-6
SCORES = ("energy", "log_prob", "probabilities")  # that must agree where they are not finite, too
BLOCK = 250  # rows of a call

Run = Callable[[Arrays], Arrays]  # a loaded graph


@dataclass(frozen=True)
class Figures:
    """What a check found, over its rows.

    Args:
        random_rows: Normal rows, and rows of random laws.
        hostile_rows: Rows that were made to break a graph.
        largest: By output the largest difference that was allowed, relative as `TOLERANCE` is.
        at_steps: Rows whose energies differ by more, as a step of the energy lies there.
        flags: Rows whose flags differ, their energies within the tolerance of the threshold.
    """

    random_rows: int
    hostile_rows: int
    largest: Mapping[str, float]
    at_steps: int
    flags: int

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {**vars(self), "largest": dict(self.largest), "tolerance": TOLERANCE}


def check(
    program: Program, run: Run, servable: Servable, typical: Callable[[int, int], Arrays], sizes: tuple[int, int]
) -> Figures:
    """The figures of a graph on so many random and hostile rows; UserError, with the row, where it disagrees."""
    specs, (num_random, num_hostile) = servable.inputs, sizes
    num_normal = round(NORMAL * num_random)
    parts = [
        typical(num_normal, 6),
        random_rows(specs, servable.content, typical(num_random - num_normal, 1), 2),
        hostile_rows(specs, servable.content, typical(num_hostile, 3), 4),
    ]
    parts = [_accepted(servable, part) for part in parts]
    num_normal, num_random, num_hostile = map(_count, parts)
    rows = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in specs}
    inputs = program.of_rows(rows, torch.Generator().manual_seed(5))
    ours, theirs = _by_blocks(program.reference, inputs), _by_blocks(run, inputs)
    compared = _Compared(program, run, inputs, ours, theirs, num_normal)
    largest = {}
    for spec in program.outputs:
        if spec.datatype in ("FP32", "FP64") and spec.name != "p_value" and spec.shape:
            largest[spec.name] = compared.numbers(spec)
    if "p_value" in theirs and isinstance(servable, Calibrated) and servable.flag_rate is not None:
        compared.p_values(servable.calibration_energies, servable.flag_rate)
    return Figures(num_normal + num_random, num_hostile, largest, int(compared.stepped.sum()), compared.flags)


def _accepted(servable: Servable, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows that the library does not refuse, found by halving."""

    def kept(at: np.ndarray) -> list[np.ndarray]:
        try:
            with np.errstate(all="ignore"):
                servable.score({name: x[at] for name, x in rows.items()})
            return [at]
        except UserError:
            half = len(at) // 2
            return [] if len(at) == 1 else kept(at[:half]) + kept(at[half:])

    found = kept(np.arange(_count(rows)))
    at = np.concatenate(found) if found else np.arange(0)
    return {name: x[at] for name, x in rows.items()}


class _Compared:
    """The outputs of a graph beside ours, for the same inputs, of which the first `num_normal` are normal rows."""

    def __init__(self, program: Program, run: Run, inputs: Arrays, ours: Arrays, theirs: Arrays, num_normal: int):
        self.program, self.run, self.inputs, self.ours, self.theirs = program, run, inputs, ours, theirs
        self.num_normal = num_normal
        self.flags = 0
        self.stepped = np.zeros(_count(inputs), bool)

    def numbers(self, spec: TensorSpec) -> float:
        """The largest relative difference of an output that agrees."""
        a, b = (np.asarray(found[spec.name], np.float64) for found in (self.ours, self.theirs))
        if a.shape != b.shape:
            raise self.fault(spec.name, 0, f"has the shape {b.shape}, where ours is {a.shape}")
        if spec.name not in SCORES:  # where ours overflows there is no gradient or step
            b = np.where(np.isfinite(a), b, a)
        before = self.inputs.get(spec.name.removeprefix("next_"))  # a step's output is a change of its input
        unit = _unit(a) if before is None else np.maximum(_unit(a), _unit(np.asarray(before, np.float64)))
        off = relative(a / unit, b / unit)
        wrong = np.flatnonzero(off > TOLERANCE)
        if self.program.spans is not None and len(wrong):
            rows = {name: x[wrong] if np.ndim(x) else x for name, x in self.inputs.items()}
            low, high = (np.asarray(end, np.float64) for end in self.program.spans(rows)[spec.name])
            room = TOLERANCE * np.maximum(np.abs(a[wrong]), unit)
            inside = (low - room <= b[wrong]) & (b[wrong] <= high + room)
            self.stepped[wrong] = inside.reshape(len(wrong), -1).all(1)
            wrong = wrong[~self.stepped[wrong]]
            if not len(wrong):
                self._few_at_steps(spec.name, off)
        if len(wrong):
            i = int(wrong[np.nan_to_num(off[wrong], nan=np.inf).argmax()])
            raise self.fault(spec.name, i, f"differs by {off[i]:.2g} of its size, at most {TOLERANCE:g} is allowed")
        return float(off[~self.stepped].max(initial=0.0))

    def _few_at_steps(self, output: str, off: np.ndarray) -> None:
        """UserError where too many rows, or too many normal ones, are at a step, so that rounding sets the energy."""
        for what, some in (("normal rows", slice(self.num_normal)), ("rows", slice(None))):
            at, num = self.stepped[some], len(off[some])
            if at.sum() > STEPS * num + 2 * np.sqrt(STEPS * num):
                text = (
                    f"must agree with ours: {output!r} differs by up to {off[some][at].max():.2g} of its size in "
                    f"{at.sum()} of {num} {what}, by rounding alone; at most {STEPS:.0%} may; nothing was written"
                )
                raise UserError(text, argument=f"graph {self.program.name!r}", hint=MEND)

    def p_values(self, calibration: np.ndarray, rate: float) -> None:
        """The graph's p-values and flags are those of its energies, and the flags ours but near the threshold."""
        u, p = (np.asarray(self.theirs[name]) for name in ("energy", "p_value"))
        ranked = np.sort(calibration)
        wanted = conformal.p_values(ranked, u.astype(ranked.dtype))
        off = np.abs(p - wanted)
        if not (off <= P_VALUES).all():
            i = int(np.nan_to_num(off, nan=np.inf).argmax())
            raise self.fault("p_value", i, f"is {p[i]:.6g}, where the calibration gives {wanted[i]:.6g}")
        if "flag" not in self.theirs:
            return
        flag, ours = (np.asarray(found["flag"], bool) for found in (self.theirs, self.ours))
        wrong = flag != (p <= np.asarray(rate, p.dtype))
        if wrong.any():
            raise self.fault("flag", int(wrong.argmax()), f"is not p_value <= {rate:g}")
        e = np.asarray(self.ours["energy"], np.float64)
        room = TOLERANCE * np.maximum(np.abs(e), 1.0)
        with np.errstate(invalid="ignore"):  # an energy that is not finite is at no threshold
            low, high = (conformal.p_values(ranked, e + sign * room) <= rate for sign in (-1, 1))
        wrong = (flag != ours) & (low == high) & ~self.stepped
        if wrong.any():
            raise self.fault("flag", int(wrong.argmax()), "differs from ours, its energy not at the threshold")
        self.flags = int((flag != ours).sum())

    def fault(self, output: str, i: int, what: str) -> UserError:
        row = ", ".join(f"{name}={_shown(x[i] if np.ndim(x) else x)}" for name, x in list(self.inputs.items())[:6])
        text = f"must agree with ours: {output!r} {what}, in row {i} (counted from 0: {row:.200}); nothing was written"
        return UserError(text, argument=f"graph {self.program.name!r}", hint="report it, and export the other format")


def _unit(a: np.ndarray) -> np.ndarray:
    """What numbers are compared in: 1 nat for energies, the median size of each entry for gradients and positions."""
    if a.ndim < 2:
        return np.ones(())
    size = np.median(np.abs(np.nan_to_num(a, posinf=0.0, neginf=0.0)), axis=0)
    return np.where(size > 0, size, 1.0)


def relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B,) differences of b from a, relative to the largest number of the row in a, to 1 where that is smaller.

    Numbers that are not finite agree where neither is finite.
    """
    same = (a == b) | ~(np.isfinite(a) | np.isfinite(b))
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.where(same, 0.0, np.abs(a - b)).reshape(len(a), -1).max(1)
        size = np.abs(np.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0)).reshape(len(a), -1).max(1)
        return np.nan_to_num(off / np.maximum(size, 1.0), nan=np.inf)


def _count(rows: Arrays) -> int:
    return max(len(x) for x in rows.values() if np.ndim(x))


def _by_blocks(run: Run, rows: Arrays) -> dict[str, np.ndarray]:
    """Numbers that are the same for all rows, such as a step's, are given to each block as they are."""
    starts = range(0, _count(rows), BLOCK)
    with np.errstate(all="ignore"):
        found = [run({name: x[i : i + BLOCK] if np.ndim(x) else x for name, x in rows.items()}) for i in starts]
    return {name: np.concatenate([p[name] for p in found]) if np.ndim(x) else x for name, x in found[0].items()}


def _shown(value: Any) -> str:
    return (
        repr(value) if isinstance(value, str) else f"{value:.6g}" if np.ndim(value) == 0 else f"array {np.shape(value)}"
    )


def specs_dict(specs: Sequence[TensorSpec], units: Mapping[str, str]) -> list[dict[str, Any]]:
    """What a manifest says of inputs or outputs."""
    return [
        {
            "name": s.name,
            "datatype": s.datatype,
            "dtype": np.dtype(NUMPY[s.datatype]).name if s.datatype != "BYTES" else "string",
            "shape": list(s.shape),
            **({"unit": units[s.name]} if s.name in units else {}),
        }
        for s in specs
    ]
