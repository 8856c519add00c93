"""Places among sorted numbers by buckets: where numpy.searchsorted takes a dozen steps a number, one or two."""

import numpy as np

BLOCK = 4096  # numbers at once, so that they stay in the processor's cache
FEW = 64  # values that halving finds as fast
OUTER = 0.02  # share of the values on either side that have one bucket together


class BucketSearch:
    """`numpy.searchsorted(values, x)` for sorted distinct values (K,), the last one infinite; x (B,) finite.

    A bucket has a quarter of a value on average. What two comparisons do not settle is searched by halving.
    """

    def __init__(self, values: np.ndarray):
        self.values, count = values, len(values) - 1
        low, high = values[int(OUTER * count)], values[count - 1 - int(OUTER * count)]
        self.buckets = 4 * count
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            unit = (self.buckets - 2) / (high - low)
            useful = len(values) > FEW and 0 < unit < np.inf and np.isfinite(low * unit)
        self.low, self.unit, self.first = low, unit, None
        if useful:
            self.first = np.searchsorted(self._bucket(values[:-1]), np.arange(self.buckets)).astype(np.int32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(B,) places: the number of values below each."""
        if self.first is None:
            return np.searchsorted(self.values, x)
        out = np.empty(len(x), dtype=np.int32)
        for i in range(0, len(x), BLOCK):
            part, place = x[i : i + BLOCK], out[i : i + BLOCK]
            self.first.take(self._bucket(part), out=place)
            place += self.values.take(place) < part
            place += self.values.take(place) < part
            open_ = np.flatnonzero(self.values.take(place) < part)
            if len(open_):
                place[open_] = np.searchsorted(self.values, part[open_])
        return out

    def _bucket(self, x: np.ndarray) -> np.ndarray:
        """Rising with x."""
        with np.errstate(over="ignore"):
            at = (x - self.low) * self.unit
        return np.clip(at + 1.0, 0.0, self.buckets - 1.0, out=at).astype(np.int64)
