"""What is measured of a model before requests are taken, and what follows from it."""

from collections.abc import Iterable

import torch
from joblib import cpu_count

from thalweg.bundle.servable import Inpaints, Samples, Servable
from thalweg.serve.engine.cost import Cost, measure, wall_seconds

REQUEST = 0.0002  # seconds of the event loop that a request takes, with what the system does for it
MOST = 64  # processes
GAIN = 1 / 2  # of what one process computes, that a further one must be worth


def measured(servable: Servable, threads: int) -> Cost:
    """The cost with so many threads of torch."""
    torch.set_num_threads(threads)
    return measure(servable, wall_seconds if threads > 1 else None)


def number_of_processes(models: Iterable[Servable], calls: Iterable[int], threads: int, most: int | None) -> int:
    """How many processes compute: one for each call that a model may have at the same time.

    Where that is one alone, another one computes scores while the first draws or completes, which takes seconds.

    Args:
        models: What is served.
        calls: At the same time, of each.
        threads: Of a call.
        most: Processes at most. None: by the rule alone.
    """
    found = max(calls, default=1)
    long = any(isinstance(model, Samples | Inpaints) for model in models)
    return 2 if found == 1 and most is None and long and cpu_count() > threads else found


def at_once(cost: Cost, threads: int = 1, most: int | None = None) -> int:
    """How many calls of a model should be computed at the same time, each by a process.

    As many as there are processors (of those that the process may use) beside what the event loop takes to bring
    requests of one row, and no more than it can bring work for.

    Args:
        cost: Of the model.
        threads: Of a call.
        most: At most. None: by the rule alone.
    """
    if most is not None:
        return most
    row = cost(cost.batch()) / cost.batch()
    processors = cpu_count() / threads
    return min(MOST, max(1, int(min(processors * row / (row + REQUEST), row / REQUEST) + 1 - GAIN)))
