"""The law of the noise levels that a noise-conditional objective draws.

Noise variance t = sigma², y = x + sqrt(t) eps. A share of the draws follows a log-normal law of sigma (Karras et al.
2022), the rest is log-uniform and covers both ends. Each part is stratified: one uniform number a stratum, which lowers
the variance of the loss.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import HasNoiseLevels, sigma_range


class NoiseRange(NamedTuple):
    """The lowest and highest noise variance of an energy, 0-d, float64. The state of objectives over levels."""

    t_min: Tensor
    t_max: Tensor

    @classmethod
    def of(cls, energy: object) -> Self:
        """The range of an energy; UserError for an energy without noise levels."""
        sigma_range(energy)
        assert isinstance(energy, HasNoiseLevels)  # as `sigma_range` has found
        return cls(*(torch.tensor(float(t), dtype=torch.float64) for t in (energy.t_min, energy.t_max)))


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """sigma ~ share·LogNormal(median, spread) + (1 - share)·LogUniform, between the energy's levels; t = sigma².

    Args:
        median: Median of the log-normal part, in model units.
        spread: Deviation of log sigma in that part.
        share: Share of that part.
    """

    median: float = 0.3
    spread: float = 1.2
    share: float = 0.75

    def __post_init__(self):
        check.positive(median=self.median, spread=self.spread)
        check.finite(median=self.median, spread=self.spread)
        check.share(share=self.share)

    def draw(self, n: int, generator: Generator, between: NoiseRange) -> Float[Tensor, " n"]:
        """n noise variances, stratified, in random order."""
        low, high = (math.log(math.sqrt(t)) for t in between)
        middle = math.log(self.median)
        # Where share n is no whole number the rest is drawn, so that the law holds for every n, 1 included.
        num_normal = min(n, int(self.share * n + float(torch.rand((), generator=generator))))
        normal, uniform = strata(num_normal, generator), strata(n - num_normal, generator)
        # The log-normal is truncated, not clipped, so that no level has a positive probability. Only the lower tail is
        # exact in floating point, so where the median lies below all levels the law is mirrored.
        spread = -self.spread if middle < low else self.spread
        ends = torch.tensor([low - middle, high - middle], dtype=torch.float64) / spread
        a, b = torch.erfc(-ends / math.sqrt(2)) / 2  # torch's ndtr is zero below -8.3
        log_normal = middle + spread * torch.special.ndtri(a + (b - a) * normal)
        log_sigma = torch.cat([log_normal.clamp(low, high), low + (high - low) * uniform])
        return torch.exp(2 * log_sigma[torch.randperm(n, generator=generator)]).float()


def strata(n: int, generator: Generator) -> Float[Tensor, " n"]:
    """n numbers in [0, 1), one uniform in each of n intervals of equal length, ascending."""
    return (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
