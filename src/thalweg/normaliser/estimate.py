"""log Z along a path of energies, with an interval: forward and reverse passes of more and more levels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from thalweg.core.rng import generator as address
from thalweg.normaliser.ais import EnergyPath, Particles, effective_size, forward, move, reverse
from thalweg.normaliser.bennett import Sandwich, sandwich

FEW = 0.2  # effective size, as a share of the chains, below which weights are not to be trusted
WIDE = 1.0  # nats between the two passes, above which neither is
LEAST_LEVELS = 64
LEAST_MOVES = 50


class LogZ(NamedTuple):
    """log Z in nats, and how well it is known.

    `low` and `high` are an interval: the lowest and the highest of the forward, the reverse and the combined estimate,
    by three standard errors each; `high` by more where the reverse pass started from forward particles and log w varies
    much (`bennett.unseen`). `ess`: so many of the `num_chains` carry the weight, in the worse of both passes; infinite
    where the constant is exact.
    """

    estimate: float
    low: float
    high: float
    ess: float
    forward: float = math.nan  # by the forward pass: too low on average
    reverse: float = math.nan  # by the reverse pass: too high on average where it starts from the law itself
    forward_error: float = math.nan  # standard errors of the two
    reverse_error: float = math.nan
    num_chains: int = 0  # of each pass
    num_steps: int = 0  # levels of a pass
    warning: str | None = None  # why it is not to be trusted

    @property
    def gap(self) -> float:
        """reverse - forward, nats."""
        return self.reverse - self.forward

    def __str__(self) -> str:
        """The estimate, always with its interval and effective sample size."""
        text = f"log Z = {self.estimate:.3f} in [{self.low:.3f}, {self.high:.3f}], "
        text += f"ESS {self.ess:.0f}" if math.isfinite(self.ess) else "exact"
        text += f" of {self.num_chains} chains" if self.num_chains else ""
        return text if self.warning is None else f"{text}; {self.warning}"


class LogProb(NamedTuple):
    """log p(x) in nats, (B,) each, where the constant is an estimate: `low` and `high` follow from its interval."""

    estimate: Tensor
    low: Tensor
    high: Tensor


def estimate(
    path_of: Callable[[int], EnergyPath],
    *,
    samples: Tensor | None = None,
    seed: int = 0,
    num_chains: int = 512,
    num_levels: int | None = None,
    first_levels: int = LEAST_LEVELS,
    max_levels: int = 8192,
    tolerance: float = 0.1,
    device: str | torch.device = "cpu",
) -> LogZ:
    """log Z_K of a path that may have any number of levels, by passes of more and more of them, on fresh draws each.

    It ends when half the interval's width is within `tolerance`, or at `max_levels`.

    Args:
        path_of: The path with a number of levels.
        samples: Exact draws (n, *) of the last level, where the reverse pass starts; n may be another number than
            `num_chains`. If not given it starts from the forward particles, drawn by weight and moved on.
        seed: Of all draws.
        num_chains: Particles of each pass.
        num_levels: A fixed number of levels.
        first_levels: The number of levels of the first passes.
        max_levels: The highest number.
        tolerance: In nats.
        device: Where the path computes.
    """
    levels = min(first_levels, max_levels) if num_levels is None else num_levels
    while True:
        path = path_of(levels)
        found, ess = _both_passes(path, samples, num_chains, seed, levels, device)
        excess = 0.5 * (found.high - found.low) / tolerance
        if excess <= 1 or num_levels is not None or levels == max_levels:
            return result(found, path.log_z, ess, num_chains, levels)
        # The variance of a log weight falls as 1 / K, so the error as 1 / sqrt(K).
        levels = min(max_levels, math.ceil(levels * min(max(1.1 * excess**2, 2), 8)))


def _both_passes(
    path: EnergyPath, samples: Tensor | None, n: int, seed: int, levels: int, device: Any
) -> tuple[Sandwich, float]:
    def draws(name: str) -> Generator:
        return address(seed, f"log-z-{name}", levels, device=device)

    there = forward(path, n, draws("forward"))
    starts, ancestors = _starts(path, there, samples, n, draws("start"))
    back = reverse(path, starts, draws("reverse"))
    found = sandwich(there.log_w, back.log_w, ancestors, draws("bootstrap"))
    return found, min(effective_size(there.log_w), effective_size(back.log_w))


def _starts(
    path: EnergyPath, there: Particles, samples: Tensor | None, n: int, draws: Generator
) -> tuple[Tensor, Tensor]:
    """Where the reverse pass starts (n, *), and the numbers of the chains that its own depend on (n,)."""
    if samples is not None:
        order = torch.arange(n, device=samples.device) % len(samples)
        return samples[order], n + order
    if not bool((there.log_w > -torch.inf).any()):
        return there.x, torch.arange(n, device=there.x.device)
    chosen = torch.multinomial(torch.softmax(there.log_w, 0), n, replacement=True, generator=draws)
    k = path.num_levels
    return move(path, k, there.x[chosen], draws, max(LEAST_MOVES, k // 4)), chosen


def result(found: Sandwich, log_z: float, ess: float, n: int, levels: int) -> LogZ:
    """The estimates of Z_K / Z_0 and log Z_0 put together, with a warning where they are not to be trusted."""
    warning, gap = None, found.upper - found.lower
    if ess < FEW * n:
        warning = f"only {ess:.1f} of {n} chains carry the weight: the interval may not hold"
    if not abs(gap) <= WIDE:
        warning = f"the forward and the reverse pass are {abs(gap):.1f} nats apart: the interval may not hold"
    estimate, low, high, lower, upper = (
        log_z + v for v in (found.estimate, found.low, found.high, found.lower, found.upper)
    )
    errors = found.lower_error, found.upper_error
    return LogZ(estimate, low, high, ess, lower, upper, *errors, n, levels, warning)
