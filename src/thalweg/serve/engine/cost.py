"""What a call of a model costs: measured at start, corrected by what later calls took."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import numpy as np

from thalweg.bundle.servable import NUMPY, ReadsTables, Samples, Servable

LARGEST = 256  # rows of a call that is measured
BOUND = 0.05  # seconds that a batch may take: what a request waits at most for the one before it
FLAT = 1.05  # a larger batch is not worth its wait if its cost a row is above the best by less than this
REPEATS = 5
BUDGET = 0.03  # seconds after which a size is not repeated, beyond one time
WAITS = 10  # times its CPU time: a call that takes longer waits for something else than a processor
RECENT = 15  # calls whose cost corrects the estimate

Rows = Mapping[str, np.ndarray]


class Cost:
    """Seconds of a call by its rows: the measured ones, straight lines between, times what recent calls took beside.

    The correction is a median, so that one call that hung does not make the service refuse what comes after it.
    """

    def __init__(self, sizes: list[int], seconds: list[float]):
        self.sizes, self.seconds = np.array(sizes, float), np.maximum.accumulate(np.array(seconds, float))
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._ratio = 1.0
        self._known: dict[int, float] = {}  # by rows, of which a request has at most some thousand

    def __call__(self, rows: int) -> float:
        """The estimate for so many rows."""
        return self.measured(rows) * self._ratio

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a call."""
        self._recent.append(seconds / self.measured(rows))
        self._ratio = median(self._recent)

    def least(self, rows: int) -> float:
        """The lower of both: what is refused by it cannot be a matter of a slow moment."""
        return self.measured(rows) * min(1.0, self._ratio)

    def batch(self) -> int:
        """Rows of the smallest measured call of nearly the lowest cost a row, within the bound; 1 at least."""
        fits = np.flatnonzero(self.seconds <= BOUND)
        if not len(fits):
            return 1
        each = self.seconds[fits] / self.sizes[fits]
        return int(self.sizes[fits][each <= FLAT * each.min()][0])

    def measured(self, rows: int) -> float:
        """What it was at start."""
        found = self._known.get(rows)
        if found is None:
            found = self._known[rows] = self._between(rows)
        return found

    def _between(self, rows: int) -> float:
        if rows <= self.sizes[-1]:
            return float(np.interp(rows, self.sizes, self.seconds))
        return float(self.seconds[-1] * rows / self.sizes[-1])


UNKNOWN = (1, 0.005)  # rows and seconds of a model that none of our rows fits


def measure(servable: Servable, seconds_of: Callable[[Callable[[], Any]], float] | None = None) -> Cost:
    """The cost at 1, 2, 4 … rows, up to the bound; calls take a fraction of a second together.

    Args:
        servable: What is measured.
        seconds_of: How long a call takes. None: `cpu_seconds`, which other processes do not change.
    """
    timed = cpu_seconds if seconds_of is None else seconds_of
    row = example(servable)
    if row is None:
        return Cost([UNKNOWN[0]], [UNKNOWN[1]])
    sizes, seconds = [], []
    size = 1
    while size <= LARGEST and (not seconds or seconds[-1] < BOUND):
        rows = {name: np.repeat(value, size, axis=0) for name, value in row.items()}
        servable.score(rows)  # a first call of a size may allocate and choose kernels
        took, began = [], time.perf_counter()
        while len(took) < 2 or (len(took) < REPEATS and time.perf_counter() - began < BUDGET):
            took.append(timed(lambda rows=rows: servable.score(rows)))
        sizes.append(size)
        seconds.append(max(min(took), 1e-7))
        size *= 2
    return Cost(sizes, seconds)


def warm(servable: Servable, rows: int) -> None:
    """A call of one row and one of so many: first calls allocate and choose kernels."""
    row = example(servable)  # which is scored
    if row is not None and rows > 1:
        servable.score({name: np.repeat(value, rows, axis=0) for name, value in row.items()})


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU time of this thread in a call, or its wall time if that is far longer: it waits for a device, say."""
    wall, cpu = time.perf_counter(), time.thread_time()
    call()
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    return wall if wall > WAITS * cpu else cpu


def wall_seconds(call: Callable[[], Any]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def example(servable: Servable) -> dict[str, np.ndarray] | None:
    """A row that the model scores; None where none of ours fits."""
    for row in _plain(servable):
        try:
            servable.score(row)
        except Exception:  # it is our row that does not fit: requests have their own
            continue
        return row
    return None


def _plain(servable: Servable) -> Iterator[dict[str, np.ndarray]]:
    specs = servable.inputs
    if isinstance(servable, ReadsTables) and servable.columns is not None:  # a row that is usual, so that its cost is
        holds = {column.name: column for column in servable.columns.columns}
        numbers = {name: 0.0 if column.truth else 0.5 for name, column in holds.items()}
        texts = {name: (column.categories or ("a",))[0] for name, column in holds.items()}
        yield {spec.name: _filled(spec.datatype, spec.shape, numbers[spec.name], texts[spec.name]) for spec in specs}
    for number, text in ((0.5, "a"), (0.5, None), (np.nan, None), (0.0, "")):
        yield {spec.name: _filled(spec.datatype, spec.shape, number, text) for spec in specs}
    if isinstance(servable, Samples) and len(specs) == 1:
        yield {specs[0].name: np.asarray(servable.sample(1), NUMPY[specs[0].datatype])}


def _filled(datatype: Any, shape: tuple[int, ...], number: float, text: str | None) -> np.ndarray:
    """One row: a number everywhere, or a text."""
    if datatype == "BYTES":
        return np.full((1, *shape[1:]), text, object)
    value = number if datatype in ("FP32", "FP64") else 0
    return np.full((1, *shape[1:]), value, NUMPY[datatype])
