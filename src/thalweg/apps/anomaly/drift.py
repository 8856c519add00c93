"""Has the stream drifted? Where nothing has changed, energies follow the calibration's law and p-values are uniform.

A change of the law is not the same as single anomalies: it says that thresholds do not mean what they did, and that
`EnergyDetector.recalibrate`, or a new fit, is due.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from thalweg.apps.anomaly.calibrate import Calibration, check_rate
from thalweg.core.errors import UserError

EXACT = 500  # rows up to which the statistic's exact law is used
LEAST = 5  # rows of which a law can be seen


class Drift(NamedTuple):
    """`distance` between the two laws, in [0, 1]; `p_value` of no drift; `alarm` = p_value <= level."""

    distance: float
    p_value: float
    level: float
    alarm: bool


def drift(calibration: Calibration, energies: np.ndarray, *, level: float = 0.01) -> Drift:
    """Two-sample Kolmogorov-Smirnov test of new energies (B,) against the calibration's n (Smirnov 1939).

    A false alarm has probability `level` at most; both sample sizes count, ties make it cautious. Distances below about
    1.6 sqrt(1/n + 1/B) are not seen at level 0.01.
    """
    check_rate(level, "level")
    energies = np.asarray(energies, float)
    if energies.ndim != 1 or not np.isfinite(energies).all():
        raise UserError(f"energies of shape {energies.shape}: want finite numbers (B,), as detector.energy(rows) gives")
    if len(energies) < LEAST:
        raise UserError(f"{len(energies)} rows: want {LEAST} or more to see a drift")
    small = max(len(energies), len(calibration.energies)) <= EXACT
    found = stats.ks_2samp(calibration.energies, energies, method="exact" if small else "asymp")
    return Drift(float(found.statistic), float(found.pvalue), level, bool(found.pvalue <= level))


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
