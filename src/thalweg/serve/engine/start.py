"""What is measured of a model before requests are taken."""

import os
from typing import NamedTuple

import torch

from thalweg.bundle.servable import Servable
from thalweg.serve.engine.cost import Cost, measure

MOST_THREADS = 2  # beyond, the convolutions of one batch gain little and other models' clients wait
WORTH = 1.25  # a second thread takes a core from the event loop: it must gain this much


class Measured(NamedTuple):
    """A model's cost, and with how many of torch's threads."""

    cost: Cost
    threads: int


def measured(servable: Servable, threads: int | None) -> Measured:
    """The cost with so many threads. None: 1, or 2 where full calls are faster by a quarter."""
    if threads is not None:
        torch.set_num_threads(threads)
        return Measured(measure(servable), threads)
    torch.set_num_threads(1)
    one = Measured(measure(servable), 1)
    if min(MOST_THREADS, os.cpu_count() or 1) < MOST_THREADS:
        return one
    torch.set_num_threads(MOST_THREADS)
    two = Measured(measure(servable), MOST_THREADS)
    full = one.cost.batch()
    return two if WORTH * two.cost(full) < one.cost(full) else one
