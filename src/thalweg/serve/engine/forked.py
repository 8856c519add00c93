"""Scores in a process of their own, so that the event loop shares the interpreter with no model.

Where a thread computes, the event loop and torch take the interpreter from each other at each operation and each call
of the system, which costs a third of the answers. A process has one of its own. It is forked before the service starts,
so it shares the models' memory. Where a fault of native code or a lack of memory ends it, the service goes on, and
another takes its place. There are several where one would leave processors idle.

A process with threads cannot be forked safely, so others are forked at the same time, which have none and do nothing
but fork those that compute (`forker.py`).
"""

import itertools
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from thalweg.serve.engine.cost import Cost
from thalweg.serve.engine.forker import Forker
from thalweg.serve.engine.rejected import WorkerLost
from thalweg.serve.engine.scoring import Rows, Scoring

TRIES = 2  # processes that a call may lose
KEYS = itertools.count()  # of methods that yield

T = TypeVar("T")
log = logging.getLogger("thalweg.serve")


@dataclass
class Asked:
    """A call: a method, its arguments; and whether the process has been sent it."""

    call: tuple[str, tuple[Any, ...], dict[str, Any]]
    sent: bool = False


class InProcess:
    """Scores by a process that this one has had forked.

    Args:
        forker: Has it forked.
        number: Of the process, from 0.
    """

    def __init__(self, forker: Forker, number: int = 0):
        self.forker, self.number = forker, number
        self._calls: Connection | None = None
        self._asked: deque[Asked] = deque()  # and not answered
        self._changing = threading.Lock()  # of the connection
        self._interrupted = False

    def begin(self) -> None:
        """The process is asked for by the first call; what another thread has left unanswered is given up."""
        if self._asked and self._calls is not None:
            self._drop(self._calls)
        self._asked.clear()

    def measured(self, model: str, threads: int) -> Cost:
        return self._asked_and_answered("measured", model, threads)

    def warm(self, model: str, rows: int, threads: int) -> None:
        self._asked_and_answered("warm", model, rows, threads)

    def ask(self, model: str, inputs: Rows, alpha: Any, threads: int) -> None:
        self._ask("score", model, inputs, alpha, threads)

    def answers_within(self, seconds: float) -> bool:
        try:
            if self._calls is None or not self._asked[0].sent:  # `answer` sends it
                return True
            return self._calls.poll(max(0.0, seconds))
        except OSError:  # the process has ended, which is seen by who asks for the answer
            return True

    def answer(self) -> Rows:
        return self._answer()

    def score(self, model: str, inputs: Rows, alpha: Any, threads: int) -> Rows:
        """`Servable.score`, with so many threads of torch."""
        return self._asked_and_answered("score", model, inputs, alpha, threads)

    def call_method(self, model: str, name: str, *values: Any, **options: Any) -> Any:
        return self._asked_and_answered("call_method", model, name, *values, **options)

    def iterate(self, model: str, name: str, *values: Any, **options: Any) -> Generator[Any]:
        key, thread = next(KEYS), threading.get_ident()
        self._asked_and_answered("open_iterator", key, model, name, *values, **options)
        try:
            while (item := self._asked_and_answered("next_item", key)) is not None:
                yield item
        finally:
            if threading.get_ident() == thread:  # another one, at the service's end, would write between its bytes
                with suppress(WorkerLost):
                    self._asked_and_answered("close_iterator", key)

    def call(self, work: Callable[[], T]) -> T:
        return self.forker.here.call(work)

    def others(self, count: int) -> Sequence[Scoring]:
        return [InProcess(self.forker, self.number + 1 + i) for i in range(count)]

    def interrupt(self) -> bool:
        """The process is killed, also one that is stopped, and another takes its place."""
        with self._changing:
            if self._calls is None or self._interrupted or not self._asked:
                return False
            self._interrupted = True
            end = socket.socket(fileno=self._calls.fileno())
            with suppress(OSError):  # the process has ended
                end.shutdown(socket.SHUT_RDWR)  # its thread goes on as if the process had ended
            end.detach()
            return True

    def close(self) -> None:
        """Of all."""
        self.forker.close()

    def _asked_and_answered(self, what: str, *values: Any, **options: Any) -> Any:
        """What a method of `InThread` returns or raises there."""
        self._ask(what, *values, **options)
        return self._answer()

    def _ask(self, what: str, *values: Any, **options: Any) -> None:
        """Send a call to the process, if there is one; else `_answer` does it."""
        if not self._asked:
            self._interrupted = False
        self._asked.append(Asked((what, values, options)))
        if self._calls is None:
            return
        try:
            self._send(self._calls)
        except (EOFError, OSError):
            self._lose(self._calls)
        except BaseException:  # pickle cannot write it, or some bytes of it may have been written
            if self._asked.pop().sent:
                self._drop(self._calls)
            raise

    def _answer(self) -> Any:
        """What the call that was asked for first returns or raises."""
        try:
            return self._tried(*self._asked[0].call)
        finally:
            self._asked.popleft()
            self._interrupted = False

    def _tried(self, what: str, values: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """By another process where one ends."""
        forker = self.forker
        for _ in range(TRIES):
            if forker.closed or self._interrupted:
                break
            calls = self._process()
            if calls is None and not forker.closed:
                return getattr(forker.here, what)(*values, **options)
            if calls is None:
                break
            try:
                self._send(calls)
                found, error = _answer_of(calls)
            except (EOFError, OSError):
                self._lose(calls)
                continue
            except BaseException:  # some bytes of an answer may not have been read
                self._drop(calls)
                raise
            if error is not None:
                raise error
            return found
        if not forker.closed:
            self._process()
        raise WorkerLost("the process that computed this request has ended")

    def _send(self, calls: Connection) -> None:
        """Those that this process has not been sent."""
        for asked in self._asked:
            if not asked.sent:
                data = ForkingPickler.dumps(asked.call)
                asked.sent = True
                calls.send_bytes(data)

    def _lose(self, calls: Connection) -> None:
        """The process has ended."""
        self._drop(calls)
        self.forker.lost.add(self.number)

    def _drop(self, calls: Connection) -> None:
        with self._changing:
            calls.close()
            self._calls = None
        for asked in self._asked:
            asked.sent = False

    def _process(self) -> Connection | None:
        """A connection to the process that computes. None where none is to be had."""
        if self._calls is None:
            self._calls = self.forker.process(self.number)
        return self._calls


def _answer_of(calls: Connection) -> tuple[Any, Exception | None]:
    """The answer of a call; log records that come before it are written."""
    while True:
        found = calls.recv()
        if not isinstance(found, logging.LogRecord):
            return found
        logging.getLogger(found.name).handle(found)
