"""Batches that threads read while earlier ones are used."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Reads the next steps' batches by threads. A batch depends on its step alone, so their number changes no bit.

    Threads, and not processes: Pillow, Arrow and the system's reads let others run meanwhile, and a thread takes no
    memory of its own. An error of a reader is raised by `get` for its step.

    Args:
        read: The batch of a step.
        workers: Number of threads. Twice as many batches are held, for times when other work takes the cores.
    """

    def __init__(self, read: Callable[[int], T], workers: int):
        self.read, self.depth = read, 2 * workers
        self._pool = ThreadPoolExecutor(workers, "thalweg-data")
        self._coming: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """The batch of a step, once it is there; those of the next steps are begun."""
        wanted = range(step, step + self.depth + 1)
        for other in [other for other in self._coming if other not in wanted]:
            self._coming.pop(other).cancel()
        for other in wanted:
            if other not in self._coming:
                self._coming[other] = self._pool.submit(self.read, other)
        return self._coming.pop(step).result()
