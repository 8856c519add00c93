"""Where scores are computed: in the thread that asks, or in a process beside the service (`forked.py`)."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch

from thalweg.bundle.servable import Servable
from thalweg.serve.engine.start import Measured, measured

NICER = 3  # by so much what computes is nicer than the event loop: where processors are short, the loop goes first
NICEST = 19


class Scoring(Protocol):
    """What the worker asks for scores, in its thread."""

    def begin(self) -> None:
        """The thread has started."""
        ...

    def measured(self, model: str, threads: int | None) -> Measured:
        """The model's cost where its scores are computed."""
        ...

    def score(self, model: str, inputs: Mapping[str, np.ndarray], alpha: Any, threads: int) -> Mapping[str, np.ndarray]:
        """`Servable.score`, with so many threads of torch."""
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

    def begin(self) -> None:
        lower_priority()

    def measured(self, model: str, threads: int | None) -> Measured:
        return measured(self.models[model], threads)

    def score(self, model: str, inputs: Mapping[str, np.ndarray], alpha: Any, threads: int) -> Mapping[str, np.ndarray]:
        torch.set_num_threads(threads)
        return self.models[model].score(inputs, alpha=alpha)

    def close(self) -> None:
        pass


def lower_priority() -> None:
    """Lower the priority of this thread alone. Linux has one for each thread."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, min(NICEST, os.getpriority(os.PRIO_PROCESS, 0) + NICER))
