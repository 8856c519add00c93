"""Where scores are computed: in the thread that asks, or in a process beside the service (`forked.py`)."""

import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from thalweg.bundle.servable import Servable
from thalweg.serve.engine.cost import Cost, warm
from thalweg.serve.engine.start import measured

NICER = 7  # by so much what computes is nicer than the event loop: where processors are short, the loop goes first
NICEST = 19

T = TypeVar("T")
Rows = Mapping[str, np.ndarray]


class Scoring(Protocol):
    """What a worker asks for scores, in its thread."""

    def begin(self) -> None:
        """The thread has started."""
        ...

    def measured(self, model: str, threads: int) -> Cost:
        """The model's cost where its scores are computed."""
        ...

    def warm(self, model: str, rows: int, threads: int) -> None:
        """Let first calls of a row and of so many be over."""
        ...

    def ask(self, model: str, inputs: Rows, alpha: Any, threads: int) -> None:
        """Begin `Servable.score` with so many threads of torch. One more may be begun before the first is answered."""
        ...

    def answers_within(self, seconds: float) -> bool:
        """Whether `answer` need not wait longer than this, or need not be waited for by another call; it is waited."""
        ...

    def answer(self) -> Rows:
        """What the first call returns that was asked for and not answered, or raises."""
        ...

    def score(self, model: str, inputs: Rows, alpha: Any, threads: int) -> Rows:
        """`ask` and `answer`, where no call is to be answered."""
        ...

    def call_method(self, model: str, name: str, *values: Any, **options: Any) -> Any:
        """What another method of the model returns, with one thread of torch."""
        ...

    def iterate(self, model: str, name: str, *values: Any, **options: Any) -> Generator[Any]:
        """What a method that yields gives, item by item; they are asked for by one thread."""
        ...

    def call(self, work: Callable[[], T]) -> T:
        """What any other work returns; it is done in this process, and no score is computed here meanwhile."""
        ...

    def others(self, count: int) -> Sequence["Scoring"]:
        """So many more, for other workers, which compute at the same time; none where that cannot be."""
        ...

    def interrupt(self) -> bool:
        """Let the call that is computed end by `WorkerLost`, if that can be done; by any thread."""
        ...

    def close(self) -> None:
        """End what was started, whatever it computes; by any thread."""
        ...


class InThread:
    """In the worker's thread, which shares the interpreter with the event loop.

    Args:
        models: By name.
    """

    def __init__(self, models: Mapping[str, Servable]):
        self.models = models
        self._one = threading.RLock()  # no model need be safe for threads
        self._asked: tuple[str, Rows, Any, int]

    def begin(self) -> None:
        lower_priority()

    def measured(self, model: str, threads: int) -> Cost:
        with self._one:
            return measured(self.models[model], threads)

    def warm(self, model: str, rows: int, threads: int) -> None:
        with self._one:
            torch.set_num_threads(threads)
            warm(self.models[model], rows)

    def ask(self, model: str, inputs: Rows, alpha: Any, threads: int) -> None:
        self._asked = model, inputs, alpha, threads

    def answers_within(self, seconds: float) -> bool:
        return True  # by this thread

    def answer(self) -> Rows:
        return self.score(*self._asked)

    def score(self, model: str, inputs: Rows, alpha: Any, threads: int) -> Rows:
        """`Servable.score`, with so many threads of torch."""
        with self._one:
            torch.set_num_threads(threads)
            return self.models[model].score(inputs, alpha=alpha)

    def call_method(self, model: str, name: str, *values: Any, **options: Any) -> Any:
        return self.call(lambda: getattr(self.models[model], name)(*values, **options))

    def iterate(self, model: str, name: str, *values: Any, **options: Any) -> Generator[Any]:
        yield from getattr(self.models[model], name)(*values, **options)

    def call(self, work: Callable[[], T]) -> T:
        with self._one:
            torch.set_num_threads(1)
            return work()

    def others(self, count: int) -> Sequence[Scoring]:
        return ()

    def interrupt(self) -> bool:
        return False  # a thread inside torch cannot be ended

    def close(self) -> None:
        pass


def lower_priority() -> None:
    """Lower the priority of this thread alone. Linux has one for each thread."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, min(NICEST, os.getpriority(os.PRIO_PROCESS, 0) + NICER))
