"""A thread that computes: it takes a piece of work whenever it is free, and reports what came of it."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from thalweg.serve.engine.job import Job, Piece, joined, split
from thalweg.serve.engine.scoring import Scoring
from thalweg.serve.engine.waiting import Waiting

log = logging.getLogger("thalweg.serve")


class Outcome(NamedTuple):
    """What a worker reports: jobs that were late, and a piece with its answers, one a job, or the error instead."""

    late: list[Job]
    piece: Piece | None = None
    began: float = 0.0
    seconds: float = 0.0
    answers: list[Any] | None = None
    found: Mapping[str, Any] | None = None
    error: Exception | None = None


class Worker:
    """One thread. An `Exception` of a model is reported; anything else ends the thread, which the engine replaces.

    Args:
        scoring: Computes scores.
        waiting: Where work is taken from.
        threads: torch's threads.
        report: Called in this thread, after each piece and for jobs that were late.
        number: Its own; that of the worker which does other work than scores is 0.
        on_taken: Called in this thread when it has taken a piece, before it computes.
    """

    def __init__(
        self,
        scoring: Scoring,
        waiting: Waiting,
        threads: int,
        report: Callable[[Outcome], None],
        number: int = 0,
        on_taken: Callable[[], None] = lambda: None,
    ):
        self.scoring, self.waiting, self.threads, self.report = scoring, waiting, threads, report
        self.number, self.on_taken = number, on_taken
        self._bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._idle = False
        self._thread = threading.Thread(target=self._run, name="thalweg-inference", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    def wake(self) -> None:
        """There is work. Two threads may say so at once: the second ring costs one more look."""
        if self._idle:
            self._idle = False
            self._bell.put(True)

    def stop(self) -> None:
        """End after the running piece."""
        self._idle = False
        self._bell.put(False)

    @property
    def idle(self) -> bool:
        """Whether it waits for work."""
        return self._idle

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self.scoring.begin()
            self._work()
        except BaseException as error:  # the engine sees that the thread has ended
            log.critical("the inference thread has ended by %r", error)

    def _work(self) -> None:
        while True:
            self._idle = True  # before the look: what comes after it rings the bell
            piece, late = self.waiting.take(self.number)
            if piece is not None:
                self._idle = False
                self.on_taken()
                self._compute(piece, late)
                continue
            if late:
                self.report(Outcome(late))
            if not self._bell.get():
                return

    def _compute(self, piece: Piece, late: list[Job]) -> None:
        clock = self.waiting.clock
        began = clock()
        answers = found = error = None
        large = piece.kind == "score" and 2 * piece.rows >= self.waiting.batch.get(piece.model, 1)
        threads = self.threads if large else 1  # a second one gains on full calls only
        try:
            if piece.work is not None:
                answers = [self.scoring.call(piece.work)]
            else:
                inputs, alpha = joined(piece)
                found = self.scoring.score(piece.model, inputs, alpha, threads)
                answers = split(piece, found)
        except Exception as fault:
            error = fault
        seconds = clock() - began
        self.waiting.finished(self.number, piece, seconds)
        self.report(Outcome(late, piece, began, seconds, answers, found, error))
