"""Where the levels of an annealing lie, and how far their kernels step: found by particles that are then thrown away.

The weights of a pass are unbiased for any levels and step sizes that do not depend on its own draws. So these are
fitted first, on other draws, by sequential Monte Carlo with adaptive temperatures (Del Moral et al. 2006; Zhou et al.
2016).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from thalweg.core.errors import UserError
from thalweg.normaliser.ais import effective_size, require_exact
from thalweg.normaliser.tempering import Annealing, AnnealingPath

ACCEPTANCE = 0.574  # of MALA (Roberts & Rosenthal 1998)
OVERLAP = 0.9  # effective size of the weights from one level to the next, as a share of the particles
NUM_MOVES = 4
MAX_LEVELS = 1000
_HALVINGS = 25


class Levels(NamedTuple):
    """Levels of equal overlap and their step sizes, and particles of the last."""

    betas: list[float]
    step_sizes: list[float]
    x: Tensor

    def path(self, annealing: Annealing, num_levels: int) -> AnnealingPath:
        """The path of so many levels, spread evenly over the plan's."""
        at = np.linspace(0, len(self.betas) - 1, num_levels + 1)
        known = np.arange(len(self.betas))
        betas = np.interp(at, known, self.betas)
        steps = np.exp(np.interp(at, known, np.log(self.step_sizes)))
        return AnnealingPath(annealing, [*betas[:-1].tolist(), 1.0], steps.tolist())


def make_plan(annealing: Annealing, n: int, generator: Generator) -> Levels:
    """Levels between which n particles keep `OVERLAP` of their effective size, each moved by its adapted kernel."""
    x = annealing.draw(n, generator)
    betas, steps, smallest = [0.0], [x[0].numel() ** (-1 / 3)], 1 / MAX_LEVELS
    while betas[-1] < 1:
        beta, log_w = _next_level(annealing, x, betas[-1], smallest * (len(betas) > MAX_LEVELS))
        x = x[torch.multinomial(torch.softmax(log_w, 0), n, replacement=True, generator=generator)]
        x, step = _moved(annealing, beta, x, steps[-1], generator)
        betas.append(beta)
        steps.append(step)
    return Levels(betas, [steps[1], *steps[1:]], x)


def _next_level(annealing: Annealing, x: Tensor, beta: float, least: float) -> tuple[float, Tensor]:
    """The highest beta that keeps the overlap, and the log weights of the step to it."""
    u = annealing.at(beta)(x).double()

    def weights(to: float) -> Tensor:
        log_w = u - annealing.at(to)(x).double()
        return torch.where((u == torch.inf) | log_w.isnan(), -torch.inf, log_w)

    def overlaps(log_w: Tensor) -> bool:
        return effective_size(log_w) >= OVERLAP * len(x)

    if overlaps(log_w := weights(1.0)):
        return 1.0, log_w
    low, high = beta, 1.0
    for _ in range(_HALVINGS):
        # In logarithms of beta: a target that is far from its base law needs its first levels near 0.
        middle = math.sqrt(max(low, 1e-9) * high) if high > 2 * max(low, 1e-9) else 0.5 * (low + high)
        low, high = (middle, high) if overlaps(weights(middle)) else (low, middle)
    to = min(max(low if low > beta else high, beta + least), 1.0)
    log_w = weights(to)
    if not bool((log_w > -torch.inf).any()):
        hint = "give where chains begin as start"
        raise UserError("must have mass where its chains are", argument="energy", hint=hint)
    return to, log_w


def _moved(annealing: Annealing, beta: float, x: Tensor, step: float, generator: Generator) -> tuple[Tensor, float]:
    """Positions after some steps at a level, and the step size adapted to the wanted acceptance."""
    energy, log_step = annealing.at(beta), math.log(step)
    for _ in range(NUM_MOVES):
        kernel = require_exact(annealing.kernel(math.exp(log_step)))
        state = kernel.init(energy, x)
        state, info = kernel.step(energy, state, kernel.draw(state, generator))
        x, log_step = state.x, log_step + (float(info.acceptance.mean()) - ACCEPTANCE)
    return x, math.exp(log_step)
