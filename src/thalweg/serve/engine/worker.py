"""A thread that computes: it takes a piece of work whenever it is free, and reports what came of it."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from thalweg.serve.engine.job import Job, Piece, joined, split
from thalweg.serve.engine.scoring import Scoring
from thalweg.serve.engine.waiting import Waiting

LEAD = 0.001  # seconds before a call's end at which the next one is handed over, as that and waking take some .6 ms,
UNSURE = 0.1  # or such a share of the call, by which it may end earlier;
MOST = 0.25  # not where it would be more of the call than this: what comes later waits for the one after

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


class HandedOver(NamedTuple):
    """A piece of scores that is handed over, jobs that were late, and why it could not be handed over."""

    piece: Piece
    late: list[Job]
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
        expected_seconds: Seconds that a piece of scores should take.
    """

    def __init__(
        self,
        scoring: Scoring,
        waiting: Waiting,
        threads: int,
        report: Callable[[Outcome], None],
        number: int = 0,
        on_taken: Callable[[], None] = lambda: None,
        expected_seconds: Callable[[Piece], float] = lambda piece: 0.0,
    ):
        self.scoring, self.waiting, self.threads, self.report = scoring, waiting, threads, report
        self.number, self.on_taken, self.expected_seconds = number, on_taken, expected_seconds
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
                (self._score if piece.work is None else self._call)(piece, late)
                continue
            if late:
                self.report(Outcome(late))
            if not self._bell.get():
                return

    def _call(self, piece: Piece, late: list[Job]) -> None:
        """Other work than scores."""
        began, answers, error = self.waiting.clock(), None, None
        assert piece.work is not None
        try:
            answers = [self.scoring.call(piece.work)]
        except Exception as fault:
            error = fault
        now = self._finished(piece, began)
        self.report(Outcome(late, piece, began, now - began, answers, None, error))

    def _score(self, piece: Piece, late: list[Job]) -> None:
        """A piece of scores, and those that are begun before its answers are reported."""
        began = self.waiting.clock()
        begun: HandedOver | None = self._begin(piece, late)
        while begun is not None:
            piece, late, error = begun
            begun, answers = None, None
            found: Any = None
            if error is None:
                begun = self._ahead(piece, began)
                try:
                    found = self.scoring.answer()
                except Exception as fault:
                    error = fault
            now = self._finished(piece, began)
            if begun is None and 2 * self.waiting.rows >= self._call_rows(piece):
                begun = self._following()
            if error is None:
                try:
                    answers = split(piece, found)
                except Exception as fault:
                    found, error = None, fault
            self.report(Outcome(late, piece, began, now - began, answers, found, error))
            began = now

    def _begin(self, piece: Piece, late: list[Job]) -> HandedOver:
        """Hand over a piece."""
        large = 2 * piece.rows >= self._call_rows(piece)
        try:
            inputs, alpha = joined(piece)
            self.scoring.ask(piece.model, inputs, alpha, self.threads if large else 1)  # they gain on full calls
        except Exception as error:
            return HandedOver(piece, late, error)
        return HandedOver(piece, late, None)

    def _ahead(self, piece: Piece, began: float) -> HandedOver | None:
        """The next piece, handed over shortly before this one should end, so that nothing is idle between them."""
        expected = self.expected_seconds(piece)
        lead = max(LEAD, UNSURE * expected)
        left = expected - lead - (self.waiting.clock() - began)
        return None if lead > MOST * expected or self.scoring.answers_within(left) else self._following(expected)

    def _following(self, expected_seconds: float = 0.0) -> HandedOver | None:
        """The next piece of scores, handed over; `expected_seconds`: of the one that is computed."""
        piece, late = self.waiting.take(self.number, scores_only=True, expected_seconds=expected_seconds)
        if piece is not None:
            self.on_taken()
            return self._begin(piece, late)
        if late:
            self.report(Outcome(late))
        return None

    def _finished(self, piece: Piece, began: float) -> float:
        """When."""
        now = self.waiting.clock()
        self.waiting.finished(self.number, piece, now - began)
        return now

    def _call_rows(self, piece: Piece) -> int:
        return self.waiting.batch.get(piece.model, 1)
