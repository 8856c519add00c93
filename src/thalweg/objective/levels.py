"""Which noise levels a noise-conditional objective visits, and how often.

Noise variance t = sigma², y = x + sqrt(t) eps. A share of the draws follows a log-normal law of sigma (Karras et
al. 2022: most is learned at middle levels), the rest is log-uniform so that both ends are seen. Draws are
stratified: one uniform number a stratum, so a batch covers the law evenly and the loss is less noisy at no cost.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor


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
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max}: want 0 < min < max")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: a share lies in [0, 1]")

    @property
    def t_min(self) -> float:
        """The lowest noise variance."""
        return self.sigma_min**2

    @property
    def t_max(self) -> float:
        """The highest noise variance."""
        return self.sigma_max**2

    def draw(self, n: int, generator: Generator) -> Float[Tensor, " n"]:
        """n noise variances, stratified, in random order."""
        v = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        num_normal = round(self.share * n)
        order = torch.randperm(n, generator=generator)
        normal, uniform = v[order[:num_normal]], v[order[num_normal:]]
        # Both parts are stratified on their own after the random split; the log-normal is truncated, not clipped,
        # so that no share of the draws piles up on a single level.
        a, b = (
            torch.special.ndtr(torch.tensor((e - math.log(self.median)) / self.spread).double()) for e in (low, high)
        )
        log_normal = math.log(self.median) + self.spread * torch.special.ndtri(a + (b - a) * normal)
        log_sigma = torch.cat([log_normal.clamp(low, high), low + (high - low) * uniform])
        return torch.exp(2 * log_sigma).float()
