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


class Computed(NamedTuple):
    """A piece that is finished: what other work returned, the scores, or an error."""

    late: list[Job]
    piece: Piece
    began: float
    seconds: float
    answer: Any
    found: Any
    error: Exception | None


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
        self._untold: Computed | None = None  # what is finished and not reported
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
        finally:
            self._tell()

    def _work(self) -> None:
        while True:
            self._idle = True  # before the look: what comes after it rings the bell
            piece, late = self.waiting.take(self.number)
            if piece is not None:
                self._idle = False
                self.on_taken()
                self._compute(piece, late)
                continue
            self._tell()
            if late:
                self.report(Outcome(late))
            if not self._bell.get():
                return

    def _compute(self, piece: Piece, late: list[Job]) -> None:
        clock = self.waiting.clock
        began = clock()
        answer: Any = None
        found: Any = None
        error: Exception | None = None
        call = self.waiting.batch.get(piece.model, 1)
        threads = self.threads if piece.kind == "score" and 2 * piece.rows >= call else 1  # it gains on full calls only
        try:
            if piece.work is not None:
                self._tell()
                answer = self.scoring.call(piece.work)
            else:
                inputs, alpha = joined(piece)
                found = self.scoring.score(piece.model, inputs, alpha, threads, self._tell)
        except Exception as fault:
            error = fault
        self._tell()
        seconds = clock() - began
        self.waiting.finished(self.number, piece, seconds)
        self._untold = Computed(late, piece, began, seconds, answer, found, error)
        if 2 * self.waiting.rows < call:  # else the next call begins first, so that its process does not wait
            self._tell()

    def _tell(self) -> None:
        """Report what was computed last, if that was not done."""
        untold, self._untold = self._untold, None
        if untold is None:
            return
        answers, error = None, untold.error
        if error is None:
            try:
                answers = [untold.answer] if untold.piece.work is not None else split(untold.piece, untold.found)
            except Exception as fault:
                error = fault
        found = untold.found if error is None else None
        self.report(Outcome(untold.late, untold.piece, untold.began, untold.seconds, answers, found, error))
