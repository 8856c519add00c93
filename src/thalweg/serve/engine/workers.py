"""The workers of an engine: one that does all kinds of work, and others that compute scores at the same time."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from thalweg.serve.engine.job import Piece
from thalweg.serve.engine.scoring import Scoring
from thalweg.serve.engine.waiting import Waiting
from thalweg.serve.engine.worker import Outcome, Worker

log = logging.getLogger("thalweg.serve")


class Workers:
    """Of one engine; all methods but `wake` are of the event loop's thread.

    Args:
        waiting: Where they take work from.
        threads: torch's threads.
        report: Called in a worker's thread, as `Worker` says.
        expected_seconds: Seconds that a piece of scores should take.
    """

    def __init__(
        self,
        waiting: Waiting,
        threads: int,
        report: Callable[[Outcome], None],
        expected_seconds: Callable[[Piece], float],
    ):
        self.waiting, self.threads, self.report, self.expected_seconds = waiting, threads, report, expected_seconds
        self.every: list[Worker] = []

    def add(self, *scorings: Scoring) -> None:
        """One more for each, which begins to take work."""
        for scoring in scorings:
            self.every.append(self._started(scoring, len(self.every)))

    async def add_warm(self, scorings: Sequence[Scoring]) -> None:
        """As `add`, after each has computed all models, at the same time."""
        loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(max(1, len(scorings)))

        def warm(scoring: Scoring) -> None:
            for name, rows in self.waiting.batch.items():
                scoring.warm(name, rows, self.threads)

        try:
            await asyncio.gather(*(loop.run_in_executor(pool, warm, scoring) for scoring in scorings))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self.add(*scorings)

    def wake(self) -> None:
        """Let one that idles look for work, if some waits that it should take; by any thread.

        Each does so once it has taken something: another one may be needed for the rest, or for what it let wait.
        """
        for worker in self.every:
            if worker.idle and self.waiting.offered(worker.number):
                worker.wake()
                return

    def alive(self) -> bool:
        """Whether all run."""
        return all(worker.alive() for worker in self.every)

    def ended(self) -> Sequence[int]:
        """Numbers of those that do not."""
        return [number for number, worker in enumerate(self.every) if not worker.alive()]

    def replace(self, number: int) -> None:
        """A new worker for one that has ended."""
        log.error("a worker has ended; another one takes its place")
        self.every[number] = self._started(self.every[number].scoring, number)

    def interrupt(self, number: int, seconds: float) -> None:
        """Give up what a worker has computed for so long, if that can be done."""
        if self.every[number].scoring.interrupt():
            log.error("one call was computed for %.0f s, and is given up with its process", seconds)

    def stop(self) -> None:
        """Each ends after the piece that it computes."""
        for worker in self.every:
            worker.stop()

    def _started(self, scoring: Scoring, number: int) -> Worker:
        worker = Worker(scoring, self.waiting, self.threads, self.report, number, self.wake, self.expected_seconds)
        worker.start()
        return worker
