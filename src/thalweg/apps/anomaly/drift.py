"""The drift test: whether the energies of new rows, taken together, follow the law of the calibration.

A drift is not the same as single anomalies. Thresholds then no longer have their false-alarm rate, and
`EnergyDetector.recalibrate`, or a new fit, is due.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from thalweg.apps.anomaly.calibration import ROUNDING, Calibration, LeaveOneOut, check_rate
from thalweg.core.errors import UserError

EXACT = 500  # rows up to which the statistic's exact law is used
LEAST = 5  # rows of which a law can be seen
VARIANCE = (1.8, 5.0)  # of shares of energies left out, over that of independent ones: upwards, downwards
VARIANCE_OF_EQUALS = (2.0, 5.0)  # the same where rows of the table are equal
LEVELS = (0.8, 0.2)  # the parts of the level that upwards and downwards have: a drift is most often upwards


class Drift(NamedTuple):
    """`distance` between the two laws, in [0, 1]; `p_value` of no drift; `alarm` = p_value <= level."""

    distance: float
    p_value: float
    level: float
    alarm: bool


def drift(calibration: Calibration, energies: np.ndarray, *, level: float = 0.01) -> Drift:
    """Two-sample Kolmogorov-Smirnov test of new energies (B,) against the calibration's n (Smirnov 1939).

    A false alarm has probability `level` at most; both sample sizes count, ties make it cautious. Distances below about
    1.6 sqrt(1/n + 1/B) are not seen at level 0.01. Energies of rows left out count less: n / 1.8 where new energies are
    higher (n / 2 in tables of equal rows), n / 5 where they are lower.
    """
    check_rate(level, "level")
    energies = np.asarray(energies, float)
    if energies.ndim != 1 or not np.isfinite(energies).all():
        hint = "give what detector.energy(rows) returns"
        raise UserError("must be finite numbers (B,)", argument="energies", hint=hint)
    if len(energies) < LEAST:
        text = f"must be {LEAST} rows or more to see a drift, and are {len(energies)}"
        raise UserError(text, argument="energies", hint="take larger batches")
    if calibration.left_out is not None:
        return _of_left_out(calibration.energies, calibration.left_out, energies, level)
    energies = _snapped(energies, calibration.ranked)
    small = max(len(energies), len(calibration.energies)) <= EXACT
    found: Any = stats.ks_2samp(calibration.energies, energies, method="exact" if small else "asymp")
    return Drift(float(found.statistic), float(found.pvalue), level, bool(found.pvalue <= level))


def _of_left_out(energies: np.ndarray, left_out: LeaveOneOut, new: np.ndarray, level: float) -> Drift:
    """Both one-sided tests against leave-one-out energies u_i (Bonferroni).

        D+ = max_u (G(u) - F(u)),    D- = max_u (F(u) - S(u)),    p = min over both of exp(-2 m B / (m + B) D²) / part,

    m = n / variance, and the parts of the level 0.8 and 0.2.

    F, G and S are the shares of new rows, of u_i, and of the energies of their equals up to u. A new row that equals
    row i has an energy from the one to the other, so that values that repeat are no drift. Leave-one-out energies are
    dependent, as each row takes part in those of its neighbours: the variance of a share of them is larger than that of
    n independent rows, by factors that `VARIANCE` bounds (`docs/experiments/anomaly.md`).
    """
    equals = np.minimum(left_out.equals, energies)
    equals = equals - ROUNDING * np.maximum(np.abs(equals), 1)
    grid = np.unique(np.concatenate([energies, equals, new]))
    weights = left_out.counts / left_out.counts.sum()
    share = _shares(new, np.full(len(new), 1 / len(new)), grid)
    up = float((_shares(energies, weights, grid) - share).max())
    down = float((share - _shares(equals, weights, grid)).max())
    rows = 1 / np.square(weights).sum()
    variances = VARIANCE if (left_out.equals == left_out.energies).all() else VARIANCE_OF_EQUALS
    sizes = [rows / variance * len(new) / (rows / variance + len(new)) for variance in variances]
    parts = zip(sizes, (up, down), LEVELS, strict=True)
    p = min(math.exp(-2 * m * max(d, 0.0) ** 2) / part for m, d, part in parts)
    return Drift(max(up, down, 0.0), min(p, 1.0), level, p <= level)


def _snapped(u: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Energies (B,) that a ranked one is but for rounding as that one, so that equal rows tie."""
    place, room = np.searchsorted(ranked, u), 2 * ROUNDING * np.maximum(np.abs(u), 1)
    for near in (ranked[np.maximum(place - 1, 0)], ranked[np.minimum(place, len(ranked) - 1)]):
        u = np.where(np.abs(near - u) <= room, near, u)
    return u


def _shares(values: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The weight of the values up to each point of the grid."""
    order = np.argsort(values)
    return np.append(0.0, np.cumsum(weights[order]))[np.searchsorted(values[order], grid, side="right")]


class DriftAlarm:
    """Batch after batch at one stated level: the chance that it *ever* gives a false alarm is `level` at most.

    Batch number b is tested at level_b = 6 level / (pi b)², whose sum is `level` (Bonferroni over the stream): it may
    be asked without end; a drift that comes late must be larger to be seen.
    """

    def __init__(self, calibration: Calibration, *, level: float = 0.01):
        self.calibration, self.level, self.batches = calibration, check_rate(level, "level"), 0

    def update(self, energies: np.ndarray) -> Drift:
        """The verdict on the next batch of energies (B,)."""
        found = drift(self.calibration, energies, level=6 * self.level / (math.pi * (self.batches + 1)) ** 2)
        self.batches += 1  # what was refused is no batch
        return found
