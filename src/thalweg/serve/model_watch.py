"""Whether what a model is asked today is what it was calibrated on: flagged share, p-values, drift."""

import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from thalweg.bundle.servable import Calibrated, Servable

if TYPE_CHECKING:  # SciPy, which these import, is loaded for models that are calibrated
    from thalweg.apps.anomaly.calibration import Calibration
    from thalweg.apps.anomaly.drift import DriftAlarm

ROWS = 1000  # recent ones that figures are of, and those of one drift test
DRIFT_LEVEL = 0.01  # the chance of a false alarm, ever
SHARE_LEVEL = 0.99  # of the interval of the flagged share
PENDING = 128  # rows that are looked at together
ROUNDING = 1e-6  # of p-values in float32


@runtime_checkable
class HasCalibration(Protocol):
    """A servable that says how its calibration energies came about: a drift test must know whether rows were new."""

    @property
    def calibration(self) -> "Calibration": ...


class Uniformity(NamedTuple):
    """How far p-values are from their law on normal rows: `distance` in [0, 1], `p_value` of there being none."""

    distance: float
    p_value: float


class ModelWatch:
    """Figures of the last `rows` rows of a model. A worker's thread updates them, the event loop reads them."""

    def __init__(self, servable: Servable, *, rows: int = ROWS):
        self.rate, self.rows, self.alarm = servable.flag_rate, rows, False
        self._calibration = _calibration(servable)
        self._drift = _alarm(self._calibration)
        self._p = np.empty(0)
        self._energies = np.empty(0)
        self._pending: list[Mapping[str, np.ndarray]] = []
        self._count = 0
        self._lock = threading.Lock()

    def update(self, found: Mapping[str, np.ndarray]) -> int:
        """Take in the answer of a call. Rows that were not finite, of those that were looked at since the last time."""
        with self._lock:
            self._pending.append(found)
            self._count += len(next(iter(found.values()), ()))
            return self._look() if self._count >= PENDING else 0

    def flush(self) -> int:
        """Look at what came since; rows of it that are not finite, which count nowhere else."""
        with self._lock:
            return self._look()

    def _look(self) -> int:
        bad, pending = 0, self._pending
        self._pending, self._count = [], 0  # also where an answer is odd
        for found in _joined(pending):
            numbers = [value for value in found.values() if value.dtype.kind == "f" and value.ndim]
            if not numbers:
                continue
            finite = np.all([np.isfinite(value).reshape(len(value), -1).all(1) for value in numbers], axis=0)
            bad += int((~finite).sum())
            if "p_value" in found:
                self._p = np.append(self._p, found["p_value"][finite])[-self.rows :]
            if self._drift is not None and "energy" in found:
                self._energies = np.append(self._energies, found["energy"][finite])
                self._test()
        return bad

    def figures(self) -> dict[str, float]:
        """By the name of their metric, those that there are."""
        with self._lock:
            p = self._p
        found = {} if self._drift is None else {"thalweg_drift_alarm": float(self.alarm)}
        if self.rate is not None:
            found["thalweg_flag_rate"] = self.rate
        if not len(p):
            return found
        law = uniformity(p, self._calibration)
        found["thalweg_watched_rows"] = float(len(p))
        found["thalweg_p_value_uniformity"], found["thalweg_p_value_uniformity_p"] = law
        if self.rate is not None:
            from thalweg.apps.anomaly.calibration import clopper_pearson

            flagged = int((p <= self.rate * (1 + ROUNDING)).sum())
            found["thalweg_flagged_share"] = flagged / len(p)
            low, high = clopper_pearson(flagged, len(p), level=SHARE_LEVEL)
            found["thalweg_flagged_share_low"], found["thalweg_flagged_share_high"] = low, high
        return found

    def _test(self) -> None:
        while len(self._energies) >= self.rows and self._drift is not None:
            batch, self._energies = self._energies[: self.rows], self._energies[self.rows :]
            self.alarm |= self._drift.update(batch).alarm


def _joined(answers: list[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """Answers one after another as one; they have the same outputs."""
    if len(answers) < 2:
        return answers
    return [{name: np.concatenate([one[name] for one in answers]) for name in answers[0]}]


def uniformity(p: np.ndarray, calibration: "Calibration | None") -> Uniformity:
    """Kolmogorov-Smirnov distance of p-values (N,) from uniform on those that the calibration's n energies can give.

        D = max_g |#{p <= g} / N - g|,    g the attainable p-values,    p_value = P(K > sqrt(m) D),   m = n N / (n + N):

    at an attainable value the law of a normal row is g itself, so steps are no deviation (the test of Kolmogorov on
    a grid, which is cautious; Conover 1972). Without a calibration every number is attainable, and m = N.
    """
    from scipy.stats import kstwobign

    p, total = np.sort(p), len(p)
    if calibration is None:
        rank = np.arange(1, total + 1)
        distance = float(np.maximum(rank / total - p, p - (rank - 1) / total).max())
        return Uniformity(distance, float(kstwobign.sf(math.sqrt(total) * distance)))
    n = len(calibration.ranked)
    grid = np.unique(np.append(calibration.p_values(calibration.ranked), 1 / (n + 1)))
    share = np.searchsorted(p, grid * (1 + ROUNDING), side="right") / total
    distance = float(np.abs(share - grid).max())
    return Uniformity(distance, float(kstwobign.sf(math.sqrt(n * total / (n + total)) * distance)))


def _calibration(servable: Servable) -> "Calibration | None":
    if isinstance(servable, HasCalibration):
        return servable.calibration
    if not isinstance(servable, Calibrated):
        return None
    from thalweg.apps.anomaly.calibration import Calibration

    energies = np.asarray(servable.calibration_energies, float)
    return Calibration(energies) if len(energies) and np.isfinite(energies).all() else None


def _alarm(calibration: "Calibration | None") -> "DriftAlarm | None":
    if calibration is None:
        return None
    from thalweg.apps.anomaly.drift import DriftAlarm

    return DriftAlarm(calibration, level=DRIFT_LEVEL)
