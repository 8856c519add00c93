"""Accepted requests until each has its answer: put in line, answered, given up, tried once more."""

import asyncio
from collections.abc import Callable
from typing import Any

from thalweg.serve.engine.job import Gone, Job, Kind, Piece, whole
from thalweg.serve.engine.rejected import Reason, Rejected, WorkerLost
from thalweg.serve.engine.waiting import Waiting
from thalweg.serve.engine.worker import Outcome
from thalweg.serve.metrics import Metrics

TRIES = 2  # workers that a request may lose


class Jobs:
    """Those of an engine; all methods are of the event loop's thread.

    Args:
        waiting: The line.
        wake: Lets a worker look at it.
        metrics: Where rejections are counted.
        clock: Seconds.
    """

    def __init__(self, waiting: Waiting, wake: Callable[[], None], metrics: Metrics, clock: Callable[[], float]):
        self.waiting, self.wake, self.metrics, self.clock = waiting, wake, metrics, clock
        self.every: dict[Job, None] = {}
        self.some = asyncio.Event()  # there are any

    def make(self, model: str, kind: Kind, size: int, seconds: float, gone: Gone | None) -> Job:
        """A request that is of use for so many seconds from now."""
        future = asyncio.get_running_loop().create_future()
        return Job(model=model, kind=kind, size=size, deadline=self.clock() + seconds, future=future, gone=gone)

    async def answer(self, job: Job) -> Any:
        """Put it in line, and wait."""
        self.every[job] = None
        self.some.set()
        self.enqueue(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._leave(job)
            raise

    def enqueue(self, job: Job, *, first: bool = False) -> None:
        """Put it in line, also one that nobody waits for; `first`: before all others."""
        self.waiting.add(job, first=first)
        self.wake()

    def rejected(self, reason: Reason, retry_after: float = 1.0) -> Rejected:
        """The error of a request that is not computed, which is counted."""
        self.metrics.rejected(reason)
        return Rejected(reason, retry_after)

    def settle(self, outcome: Outcome) -> None:
        """Answer the jobs of a piece; those of a call that failed are scored again, each alone."""
        for job in [job for job in outcome.late if not job.done]:  # a look may have found it late too
            self._finish(job, error=self.rejected("deadline"))
        piece = outcome.piece
        if piece is None:
            return
        if outcome.error is None:
            for (job, start, stop), answer in zip(piece.jobs, outcome.answers or (), strict=True):
                self._part(job, start, stop, answer)
        elif len(piece.jobs) > 1:
            for job, start, _ in reversed(piece.jobs):
                self._again(job, start)
        else:
            self._finish(piece.jobs[0][0], error=outcome.error)

    def retry(self, piece: Piece, *, computed: bool = True) -> None:
        """Its worker has ended: its requests are tried once more, each alone. What was `computed` may be the cause."""
        for job, start, _ in reversed(piece.jobs):
            job.tries += computed
            if job.kind != "score" or job.tries >= TRIES:
                self._finish(job, error=WorkerLost("the thread that computed this request has ended"))
            else:
                self._again(job, start)

    async def look(self) -> None:
        """Answer those whose time is over, drop those whose client has gone."""
        now = self.clock()
        for job in [job for job in self.every if job.deadline <= now]:
            self._finish(job, error=self.rejected("deadline"))
        for job in [job for job in self.every if job.gone is not None]:
            if not job.done and job.gone is not None and await job.gone():
                self._leave(job)

    def reject_all(self) -> None:
        """Answer all, as the service ends."""
        for job in list(self.every):
            self._finish(job, error=self.rejected("draining"))

    def _leave(self, job: Job) -> None:
        """Nobody waits for it any more."""
        if not job.done:
            job.left = self.clock()
            self._finish(job, error=self.rejected("gone"))

    def _finish(self, job: Job, answer: Any = None, error: Exception | None = None) -> None:
        if job.done:
            return
        job.done = True
        self.waiting.discard(job)
        self.every.pop(job, None)
        if not self.every:
            self.some.clear()
        if job.future.done():
            return
        if error is None:
            job.future.set_result(answer)
        else:
            job.future.set_exception(error)

    def _part(self, job: Job, start: int, stop: int, answer: Any) -> None:
        """Rows of a score, or all of other work."""
        if job.kind != "score":
            self._finish(job, answer)
            return
        job.parts.append((start, stop, answer))
        try:
            found = whole(job)
        except Exception as error:  # outputs of other names or shapes than those of the other parts
            self._finish(job, error=error)
            return
        if found is not None:
            self._finish(job, found)

    def _again(self, job: Job, start: int) -> None:
        """Score a job once more from a row on, alone and before all others."""
        if not job.done:
            self.waiting.discard(job)  # the rest of it may be in line
            job.alone, job.taken = True, min(start, job.taken)
            self.enqueue(job, first=True)
