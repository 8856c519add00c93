"""Rows with gaps: scored by what was observed of them, on the scale of whole rows.

    E_o(x) = -log p of the observed part o,    E'(x) = F^-1(F_o(E_o(x))),

F and F_o the laws of E and E_o over the same held-out rows. So a row with gaps has the p-value that its observed part
deserves, exact where values are missing at random, and one threshold serves all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.apps.anomaly.calibration import Calibration


@dataclass(frozen=True)
class Partial:
    """`rows` (n, D) held out, of which `calibration` has the energies; `center` (D,) stands in for what is missing."""

    rows: np.ndarray
    calibration: Calibration
    center: np.ndarray

    def filled(self, x: np.ndarray) -> np.ndarray:
        """x with the centre in its gaps, (B, D)."""
        return np.where(np.isnan(x), self.center, x)

    def energy(self, energy: Any, x: np.ndarray) -> np.ndarray:
        """E'(x), (B,) nats; a row without any value is the most normal one. n marginal energies a pattern of gaps."""
        u = np.empty(len(x))
        patterns, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
        for i, observed in enumerate(patterns):
            rows = np.flatnonzero(which.ravel() == i)
            u[rows] = self._of_pattern(energy, self.filled(x[rows]), observed)
        return u

    def _of_pattern(self, energy: Any, x: np.ndarray, observed: np.ndarray) -> np.ndarray:
        if observed.all():
            return np.asarray(energy.energy(x), float)
        ranked = self.calibration.ranked
        if not observed.any():
            return np.full(len(x), ranked[0])
        seen = np.sort(energy.marginal(self.rows, np.broadcast_to(observed, self.rows.shape)))
        u = np.asarray(energy.marginal(x, np.broadcast_to(observed, x.shape)), float)
        return _transport(u, seen, ranked)


def _transport(u: np.ndarray, seen: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """u carried from the law of `seen` to that of `ranked`, both rising, (n,): ranks are kept, tails are shifted.

    #{seen >= u} = #{ranked >= result} at every u, ties included, so p-values are those of the observed part.
    """
    k = np.searchsorted(seen, u, side="left")  # of them lie below u
    inside = np.minimum(k, len(seen) - 1)
    low = np.where(k > 0, ranked[np.maximum(k - 1, 0)], -np.inf)
    gap_seen = seen[inside] - np.where(k > 0, seen[np.maximum(k - 1, 0)], -np.inf)
    with np.errstate(invalid="ignore"):
        part = np.where(gap_seen > 0, 1 - (seen[inside] - u) / np.where(gap_seen > 0, gap_seen, 1.0), 1.0)
        between = low + part * (ranked[inside] - low)
    between = np.where(k == 0, ranked[0] - (seen[0] - u), between)
    return np.where(k == len(seen), ranked[-1] + (u - seen[-1]), between)
