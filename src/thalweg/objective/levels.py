"""Which noise levels a noise-conditional objective visits, and how often.

Noise variance t = sigma², y = x + sqrt(t) eps. A share of the draws follows a log-normal law of sigma (Karras et
al. 2022: most is learned at middle levels), the rest is log-uniform so that both ends are seen. Each part is
stratified on its own: one uniform number a stratum, so a batch covers both laws evenly and the loss is less noisy at
no cost. Strata of the whole batch, dealt out to the parts at random, would leave gaps in either.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """sigma ~ share·LogNormal(median, spread) + (1 - share)·LogUniform, on [sigma_min, sigma_max]; t = sigma².

    All sigmas are in the model's units (pixels in [0, 1]).
    """

    sigma_min: float = 0.02
    sigma_max: float = 20.0
    median: float = 0.3
    spread: float = 1.2
    share: float = 0.75

    def __post_init__(self):
        check.positive(sigma_min=self.sigma_min, median=self.median, spread=self.spread)
        check.increasing(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        check.finite(median=self.median, spread=self.spread)
        check.share(share=self.share)

    @property
    def t_min(self) -> float:
        """The lowest noise variance."""
        return self.sigma_min**2

    @property
    def t_max(self) -> float:
        """The highest noise variance."""
        return self.sigma_max**2

    def draw(self, n: int, generator: Generator) -> Float[Tensor, " n"]:
        """n noise variances, stratified, in random order: a row's place says nothing of its level."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        middle = math.log(self.median)
        # Where share n is no whole number the rest is drawn, so that the law holds for every n, 1 included.
        num_normal = min(n, int(self.share * n + float(torch.rand((), generator=generator))))
        normal, uniform = strata(num_normal, generator), strata(n - num_normal, generator)
        # The log-normal is truncated, not clipped, so that no share of the draws piles up on a single level.
        ends = torch.tensor([low - middle, high - middle], dtype=torch.float64) / self.spread
        a, b = torch.special.ndtr(ends)
        log_normal = middle + self.spread * torch.special.ndtri(a + (b - a) * normal)
        log_sigma = torch.cat([log_normal.clamp(low, high), low + (high - low) * uniform])
        return torch.exp(2 * log_sigma[torch.randperm(n, generator=generator)]).float()


def strata(n: int, generator: Generator) -> Float[Tensor, " n"]:
    """n numbers in [0, 1), one uniform in each of n intervals of equal length, ascending."""
    return (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
