"""Places among sorted numbers by buckets: where numpy.searchsorted takes a dozen steps a number, one or two."""

import numpy as np

BLOCK = 4096  # numbers at once, so that they stay in the processor's cache
FEW = 64  # values that halving finds as fast
OUTER = 0.002  # share of the values on either side that have one bucket together


class BucketSearch:
    """`numpy.searchsorted(values, x)` for sorted distinct values (K,), the last one infinite; x (B,) finite.

    A bucket has a quarter of a value on average. What a few comparisons do not settle is searched by halving.
    """

    def __init__(self, values: np.ndarray):
        self.values, count = values, len(values) - 1
        low, high = values[int(OUTER * count)], values[count - 1 - int(OUTER * count)]
        self.buckets = 4 * count
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            unit = (self.buckets - 2) / (high - low)
            useful = len(values) > FEW and 0 < unit < np.inf and np.isfinite(low * unit)
            self.low, self.unit = low - 1 / unit, unit
        self.first = None
        if useful:
            self.first = np.searchsorted(self._bucket(values[:-1]), np.arange(self.buckets)).astype(np.int32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(B,) places: the number of values below each."""
        return self.with_values(x)[0]

    def with_values(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places, the values there), (B,) each: the least values that are not below x."""
        if self.first is None:
            place = np.searchsorted(self.values, x)
            return place, self.values.take(place)
        places, values = np.empty(len(x), dtype=np.int32), np.empty(len(x))
        for i in range(0, len(x), BLOCK):
            here = slice(i, i + BLOCK)
            part, place, value = x[here], places[here], values[here]
            self.first.take(self._bucket(part), out=place, mode="clip")  # "raise" would copy `out`
            self.values.take(place, out=value, mode="clip")
            place += value < part
            self.values.take(place, out=value, mode="clip")
            open_ = np.flatnonzero(value < part)
            if len(open_):
                self._settle(open_, part, place, value)
        return places, values

    def _settle(self, open_: np.ndarray, x: np.ndarray, place: np.ndarray, value: np.ndarray) -> None:
        """Write the places and values of the `open_` ones, which are farther on: by a step, or by halving."""
        some = x.take(open_)
        at = place.take(open_) + 1
        below = np.flatnonzero(self.values.take(at) < some)
        if len(below):
            at[below] = np.searchsorted(self.values, some.take(below))
        place[open_], value[open_] = at, self.values.take(at)

    def _bucket(self, x: np.ndarray) -> np.ndarray:
        """Rising with x."""
        with np.errstate(over="ignore"):
            at = x - self.low
            at *= self.unit
        return np.clip(at, 0.0, self.buckets - 1.0, out=at).astype(np.int64)
