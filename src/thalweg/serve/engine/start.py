"""What is measured of a model before requests are taken."""

import os
from typing import NamedTuple

import numpy as np
import torch

from thalweg.bundle.servable import Servable
from thalweg.serve.engine.cost import Cost, example, measure, wall_seconds

MOST_THREADS = 2  # beyond, the convolutions of one batch gain little and other models' clients wait
WORTH = 1.25  # a second thread takes a core from the event loop: it must gain this much
THREADED = 0.0005  # seconds of a call below which a second thread is not tried
TURNS = 5


class Measured(NamedTuple):
    """A model's cost, and with how many of torch's threads."""

    cost: Cost
    threads: int


def measured(servable: Servable, threads: int | None) -> Measured:
    """The cost with so many threads. None: 1, or 2 where full calls are faster by a quarter, by turns.

    Two are tried on three cores or more: the event loop needs one, and threads that wait for it slow a call tenfold.
    """
    torch.set_num_threads(threads or 1)
    cost = measure(servable, wall_seconds if (threads or 1) > 1 else None)
    if threads is not None or (os.cpu_count() or 1) <= MOST_THREADS:
        return Measured(cost, threads or 1)
    row, took = example(servable), {1: [], MOST_THREADS: []}
    if row is None or cost(1) < THREADED:
        return Measured(cost, 1)
    rows = {name: np.repeat(value, cost.batch(), axis=0) for name, value in row.items()}
    for number in range(2 * TURNS):
        count = (1, MOST_THREADS)[number % 2]
        torch.set_num_threads(count)
        took[count].append(wall_seconds(lambda: servable.score(rows)))
    gain = min(took[1]) / min(took[MOST_THREADS])
    if gain < WORTH:
        return Measured(cost, 1)
    return Measured(Cost(list(cost.sizes), list(cost.seconds / gain)), MOST_THREADS)
