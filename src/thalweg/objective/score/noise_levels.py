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
    """The lowest and highest noise variance of an energy, 0-d, float64, on the CPU on any device: they are read.

    The state of objectives over levels. `finite_differences`: whether they differentiate their loss by these.
    """

    t_min: Tensor
    t_max: Tensor
    finite_differences: bool = False

    @classmethod
    def of(cls, energy: object) -> Self:
        """The range of an energy; UserError for an energy without noise levels."""
        sigma_range(energy)
        assert isinstance(energy, HasNoiseLevels)  # as `sigma_range` has found
        ends = (torch.tensor(float(t), dtype=torch.float64, device="cpu") for t in (energy.t_min, energy.t_max))
        return cls(*ends, finite_differences=False)

    def middle(self, x: Tensor) -> Float[Tensor, " b"]:
        """A noise variance in the middle of the levels for each row of x, for a trial."""
        return x.new_full((len(x),), math.sqrt(float(self.t_min * self.t_max)))


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
        """n noise variances, stratified, in random order, on the generator's device."""
        low, high = (math.log(math.sqrt(t)) for t in (between.t_min, between.t_max))
        middle, place = math.log(self.median), {"generator": generator, "device": generator.device}
        # Where share n is no whole number the rest is drawn, so that the law holds for every n, 1 included. That number
        # stays on the device: both parts have n places.
        num_normal = (self.share * n + torch.rand((), **place).double()).floor().clamp(max=n)
        number = torch.arange(n, device=generator.device)
        is_normal, v = number < num_normal, number + torch.rand(n, dtype=torch.float64, **place)
        normal, uniform = v / num_normal, (v - num_normal) / (n - num_normal)
        # The log-normal is truncated, not clipped, so that no level has a positive probability. Only the lower tail is
        # exact in floating point, so where the median lies below all levels the law is mirrored.
        spread = -self.spread if middle < low else self.spread
        ends = torch.tensor([low - middle, high - middle], dtype=torch.float64, device="cpu") / spread
        a, b = (torch.erfc(-ends / math.sqrt(2)) / 2).tolist()  # torch's ndtr is zero below -8.3
        log_normal = middle + spread * torch.special.ndtri(a + (b - a) * normal)
        log_sigma = torch.where(is_normal, log_normal.clamp(low, high), low + (high - low) * uniform)
        return torch.exp(2 * log_sigma[torch.randperm(n, **place)]).float()
