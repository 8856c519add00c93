"""Rows with missing values: scored by what was observed of them, on the scale of whole rows.

    E_o(x) = -log p of the observed part o,    E'(x) = F^-1(F_o(E_o(x))),

F and F_o the laws of E and E_o over the same held-out rows. So a row with gaps has the p-value that its observed part
deserves, exact where values are missing at random, and one threshold serves all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thalweg.apps.anomaly.calibration import Calibration

Energy = Callable[[np.ndarray], np.ndarray]  # (B, D) to (B,) nats
Marginal = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (B, D) and observed (B, D) bool to (B,) nats


@dataclass(frozen=True)
class PartialRows:
    """Scores rows with missing values.

    Args:
        rows: Held-out rows, (n, D).
        calibration: Their energies.
        center: Takes the place of missing values, (D,).
    """

    rows: np.ndarray
    calibration: Calibration
    center: np.ndarray

    def filled(self, x: np.ndarray) -> np.ndarray:
        """x with the centre in its gaps, (B, D)."""
        return np.where(np.isnan(x), self.center, x)

    def energies(self, energy: Energy, marginal: Marginal, x: np.ndarray) -> np.ndarray:
        """E'(x), (B,) nats; a row without any value is the most normal one. n marginal energies a pattern of gaps."""
        u = np.empty(len(x))
        patterns, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
        for i, observed in enumerate(patterns):
            rows = np.flatnonzero(which.ravel() == i)
            u[rows] = self._of_pattern(energy, marginal, self.filled(x[rows]), observed)
        return u

    def _of_pattern(self, energy: Energy, marginal: Marginal, x: np.ndarray, observed: np.ndarray) -> np.ndarray:
        if observed.all():
            return np.asarray(energy(x), float)
        ranked = self.calibration.ranked
        if not observed.any():
            return np.full(len(x), ranked[0])
        source = np.sort(marginal(self.rows, np.broadcast_to(observed, self.rows.shape)))
        u = np.asarray(marginal(x, np.broadcast_to(observed, x.shape)), float)
        return _transport(u, source, ranked)


def _transport(u: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """u carried from the law of `source` to that of `target`, both rising, (n,): ranks are kept, tails are shifted.

    #{source >= u} = #{target >= result} at every u, ties included, so p-values are those of the observed part.
    """
    k = np.searchsorted(source, u, side="left")  # of them lie below u
    inside = np.minimum(k, len(source) - 1)
    low = np.where(k > 0, target[np.maximum(k - 1, 0)], -np.inf)
    gap = source[inside] - np.where(k > 0, source[np.maximum(k - 1, 0)], -np.inf)
    with np.errstate(invalid="ignore"):
        part = np.where(gap > 0, 1 - (source[inside] - u) / np.where(gap > 0, gap, 1.0), 1.0)
        between = low + part * (target[inside] - low)
    between = np.where(k == 0, target[0] - (source[0] - u), between)
    return np.where(k == len(source), target[-1] + (u - source[-1]), between)
