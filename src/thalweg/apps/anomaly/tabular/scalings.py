"""Three scalings of a table before distances are taken in it, each set by the stored rows alone.

Standardised values keep the far tails, arcsinh values compress them, normal scores look at ranks only. A row is
unusual if it is far from all others in these on average; no one is right for every table.
"""

import numpy as np
import torch
from scipy.special import ndtri

from thalweg.apps.anomaly.bucket_search import BLOCK, BucketSearch

FAR = 1e4  # in standard deviations: values beyond are moved here, so that squares and sums stay finite
LEAST = 1e-9
CONSTANT = 1e-14  # spread over magnitude up to which a column is constant but for rounding
EXTREME = (
    300  # powers of two: columns of a typical size beyond are brought to 1, so that squares and ratios stay finite
)
HUGE = 1e150  # numbers beyond are moved here


def exponents(rows: np.ndarray) -> np.ndarray:
    """(D,) whole numbers e, so that `scaled(rows, e)` can be reckoned with: 0 for all but extreme columns."""
    sizes = np.abs(rows)
    typical = [np.median(column[column > 0]) if column.any() else 1.0 for column in sizes.T]
    powers = np.frexp(typical)[1]
    return np.where(np.abs(powers) > EXTREME, powers, 0)


def scaled(x: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """x 2^-e, exact, within ±HUGE."""
    with np.errstate(over="ignore"):
        return np.clip(np.ldexp(x, -powers) if powers.any() else x, -HUGE, HUGE)


def _scale(values: np.ndarray) -> np.ndarray:
    """Standard deviations (D,). Columns without spread have no unit: their size stands in, 1 at most."""
    largest = np.abs(values).max(0)
    largest = np.where(largest > 0, largest, 1.0)
    spread = (values / largest).std(0)  # scaled down first, lest squares overflow
    return np.where(spread > CONSTANT, spread * largest, np.minimum(largest, 1.0))


class Standard:
    """z = (x - mean) / sd, within ±FAR."""

    def __init__(self, rows: np.ndarray):
        self.mean, self.scale = rows.mean(0), _scale(rows)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.clip((x - self.mean) / self.scale, -FAR, FAR)


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
        return _arcsinh((x - self.middle) / self.scale)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.clip((self._raw(x) - self.mean) / self.sd, -FAR, FAR)


class NormalScores:
    """q = Phi^-1(mid-rank of x) over its own sd, plus the arcsinh of how far x lies outside the stored range."""

    def __init__(self, rows: np.ndarray):
        self.low, self.high, self.scale = rows.min(0), rows.max(0), _scale(rows)
        self.tables = [_scores(column) for column in rows.T]
        self._over_sd = [(at, between) for _, at, between in self.tables]
        self.sd = _scale(self(rows))
        self._over_sd = [(at / sd, between / sd) for (at, between), sd in zip(self._over_sd, self.sd, strict=True)]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = np.empty(x.shape)
        for i in range(0, len(x), BLOCK):
            columns = x[i : i + BLOCK].T.copy()
            for j, column in enumerate(columns):
                self._score(j, column)
            out[i : i + BLOCK] = columns.T
        return out

    def _score(self, j: int, x: np.ndarray) -> None:
        """Write the scores of numbers of column j (B,) over them."""
        at, between = self._over_sd[j]
        place, value = self.tables[j][0].with_values(x)
        known = np.flatnonzero(value == x)
        outside = np.flatnonzero((x < self.low[j]) | (x > self.high[j]))  # few, as a rule
        beyond = x[outside]
        between.take(place, out=x, mode="clip")
        if len(known):
            x[known] = at[place[known]]
        if len(outside):
            edge = np.where(beyond < self.low[j], self.low[j], self.high[j])
            x[outside] += np.arcsinh((beyond - edge) / self.scale[j])


def _arcsinh(z: np.ndarray) -> np.ndarray:
    """log(|z| + sqrt(z² + 1)) with z's sign, to 1e-16 absolute; NumPy's own, thrice as long, is as close relatively."""
    out = np.empty(z.shape)
    for i in range(0, len(z), BLOCK // 16):
        part = z[i : i + BLOCK // 16]
        size = np.minimum(np.abs(part), HUGE)
        size += np.sqrt(size * size + 1)
        np.copysign(torch.from_numpy(size).log_().numpy(), part, out=out[i : i + BLOCK // 16])
    beyond = np.abs(z) > HUGE
    if beyond.any():
        out[beyond] = np.arcsinh(z[beyond])
    return out


def _scores(column: np.ndarray) -> tuple[BucketSearch, np.ndarray, np.ndarray]:
    """Distinct values and infinity, (K + 1,), the normal scores at them, and those just below each."""
    values, counts = np.unique(column, return_counts=True)
    n, right = len(column), np.cumsum(counts)
    left = right - counts
    at, between = ((k + 1) / (2 * (n + 1)) for k in (left + right, 2 * np.append(left, n)))
    least = 0.5 / (n + 1)
    at, between = (ndtri(np.clip(share, least, 1 - least)) for share in (at, between))
    return BucketSearch(np.append(values, np.inf)), np.append(at, at[-1]), between


SCALINGS = {"standard": Standard, "arcsinh": Arcsinh, "ranks": NormalScores}
