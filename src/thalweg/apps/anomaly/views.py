"""Three ways to look at a table before distances are taken in it, each set by the stored rows alone.

Standardised values keep the far tails, arcsinh values compress them, normal scores look at ranks only. A row is
unusual if it is far from all others in the views on average; no view is right for every table.
"""

import numpy as np
from scipy.special import ndtri

FAR = 1e4  # in standard deviations: values beyond are moved here, so that squares and sums stay finite
LEAST = 1e-9


def _scale(values: np.ndarray) -> np.ndarray:
    """Standard deviations (D,), 1 for columns without spread; scaled down first, lest squares overflow."""
    largest = np.maximum(np.abs(values).max(0), 1.0)
    spread = (values / largest).std(0) * largest
    return np.where(spread > 1e-12 * largest, spread, 1.0)


class Standard:
    """z = (x - mean) / sd, within ±FAR."""

    def __init__(self, rows: np.ndarray):
        self.mean, self.scale = rows.mean(0), _scale(rows)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x / self.scale - self.mean / self.scale, -FAR, FAR)


class Arcsinh:
    """a = arcsinh((x - median) / s), standardised; s is the interquartile range's sd, or the sd where that is zero."""

    def __init__(self, rows: np.ndarray):
        self.middle = np.median(rows, axis=0)
        low, high = np.quantile(rows, [0.25, 0.75], axis=0)
        spread, robust = _scale(rows), (high - low) / 1.349
        self.scale = np.where(robust > LEAST * spread, robust, spread)
        y = self._raw(rows)
        self.mean, self.sd = y.mean(0), _scale(y)

    def _raw(self, x: np.ndarray) -> np.ndarray:
        return np.arcsinh(x / self.scale - self.middle / self.scale)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.clip((self._raw(x) - self.mean) / self.sd, -FAR, FAR)


class NormalScores:
    """q = Phi^-1(mid-rank of x) over its own sd, plus the arcsinh of how far x lies outside the stored range."""

    def __init__(self, rows: np.ndarray):
        self.order = np.sort(rows, axis=0)
        self.scale, self.sd = _scale(rows), np.ones(rows.shape[1])
        self.sd = _scale(self._ranks(rows))

    def _ranks(self, x: np.ndarray) -> np.ndarray:
        n, out = len(self.order), np.empty(x.shape)
        for j in range(x.shape[1]):
            left = np.searchsorted(self.order[:, j], x[:, j], "left")
            right = np.searchsorted(self.order[:, j], x[:, j], "right")
            out[:, j] = (left + right + 1) / (2 * (n + 1))
        return ndtri(np.clip(out, 0.5 / (n + 1), 1 - 0.5 / (n + 1)))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        low, high = self.order[0], self.order[-1]
        below = np.minimum(x, low) / self.scale - low / self.scale
        above = np.maximum(x, high) / self.scale - high / self.scale
        return self._ranks(x) / self.sd + np.arcsinh(below) + np.arcsinh(above)


VIEWS = {"standard": Standard, "arcsinh": Arcsinh, "ranks": NormalScores}
