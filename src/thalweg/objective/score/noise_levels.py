"""Which noise levels a noise-conditional objective visits, and how often.

Noise variance t = sigma², y = x + sqrt(t) eps. A share of the draws follows a log-normal law of sigma (Karras et
al. 2022: most is learned at middle levels), the rest is log-uniform so that both ends are seen. Each part is
stratified on its own: one uniform number a stratum, so a batch covers both laws evenly and the loss is less noisy at
no cost. Strata of the whole batch, dealt out to the parts at random, would leave gaps in either.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import sigma_range


class NoiseRange(NamedTuple):
    """The noise variances of an energy, which alone states them: 0-d, float64. The state of objectives over levels."""

    t_min: Tensor
    t_max: Tensor

    @classmethod
    def of(cls, energy: Any) -> Self:
        """The energy's own; UserError for an energy without noise levels."""
        sigma_range(energy)
        return cls(*(torch.tensor(float(t), dtype=torch.float64) for t in (energy.t_min, energy.t_max)))


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """sigma ~ share·LogNormal(median, spread) + (1 - share)·LogUniform, between the energy's levels; t = sigma².

    `median` is in the model's units (pixels in [0, 1]), `spread` the deviation of log sigma.
    """

    median: float = 0.3
    spread: float = 1.2
    share: float = 0.75

    def __post_init__(self):
        check.positive(median=self.median, spread=self.spread)
        check.finite(median=self.median, spread=self.spread)
        check.share(share=self.share)

    def draw(self, n: int, generator: Generator, between: NoiseRange) -> Float[Tensor, " n"]:
        """n noise variances, stratified, in random order: a row's place says nothing of its level."""
        low, high = (math.log(math.sqrt(t)) for t in between)
        middle = math.log(self.median)
        # Where share n is no whole number the rest is drawn, so that the law holds for every n, 1 included.
        num_normal = min(n, int(self.share * n + float(torch.rand((), generator=generator))))
        normal, uniform = strata(num_normal, generator), strata(n - num_normal, generator)
        # The log-normal is truncated, not clipped, so that no share of the draws piles up on a single level. Only the
        # lower tail is exact in floating point, so where the median lies below all levels the law is mirrored.
        spread = -self.spread if middle < low else self.spread
        ends = torch.tensor([low - middle, high - middle], dtype=torch.float64) / spread
        a, b = torch.erfc(-ends / math.sqrt(2)) / 2  # torch's ndtr is zero below -8.3
        log_normal = middle + spread * torch.special.ndtri(a + (b - a) * normal)
        log_sigma = torch.cat([log_normal.clamp(low, high), low + (high - low) * uniform])
        return torch.exp(2 * log_sigma[torch.randperm(n, generator=generator)]).float()


def strata(n: int, generator: Generator) -> Float[Tensor, " n"]:
    """n numbers in [0, 1), one uniform in each of n intervals of equal length, ascending."""
    return (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
