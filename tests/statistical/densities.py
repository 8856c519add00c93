"""Densities in closed form that are hard to sample: curved, skewed, of many scales."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.energy.analytic import Numbers, _Analytic


class Banana(_Analytic):
    """E(x) = x_1² / (2 s²) + (x_2 - b (x_1² - s²))² / 2 in 2-D: a twisted Gaussian (Haario et al. 1999).

    The twist keeps volumes, so log Z = log(2 pi s); x_2 is skewed, with variance 1 + 2 b² s⁴.
    """

    def __init__(self, scale: float = 1.5, bend: float = 0.5):
        super().__init__()
        self.scale, self.bend = scale, bend
        covariance = torch.tensor([scale**2, 1 + 2 * bend**2 * scale**4], dtype=torch.float64).diag()
        self._constants(mean=torch.zeros(2), covariance=covariance, log_z=math.log(2 * math.pi * scale))

    def untwist(self, x: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
        """x to two independent standard normal coordinates."""
        first, second = x.unbind(1)
        return torch.stack([first / self.scale, second - self.bend * (first.square() - self.scale**2)], 1)

    def forward(self, x: Float[Tensor, "b 2"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return 0.5 * self.untwist(x).square().sum(-1)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n 2"]:
        """n exact draws, float64."""
        z = self._normal(n, generator)
        first = self.scale * z[:, 0]
        return torch.stack([first, z[:, 1] + self.bend * (first.square() - self.scale**2)], 1)


class LogGamma(_Analytic):
    """E(x) = sum_i exp(x_i) - a_i x_i: independent logarithms of Gamma(a_i) variables, skewed to the left.

    log Z = sum log Gamma(a_i), mean digamma(a_i), variance trigamma(a_i). `alpha` (D,) positive.
    """

    alpha: Tensor

    def __init__(self, alpha: Numbers = (0.7, 2.0)):
        super().__init__()
        a = torch.as_tensor(alpha, dtype=torch.float64)
        variance = torch.polygamma(1, a)
        self._constants(mean=a.digamma(), covariance=variance.diag(), alpha=a, log_z=a.lgamma().sum())

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return (x.exp() - self.alpha.to(x) * x).sum(-1)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """n exact draws, float64."""
        # Gamma(a) = Gamma(a + 1) U^(1/a), taken in logarithms, so that a small a cannot underflow.
        gamma = torch._standard_gamma((self.alpha + 1).expand(n, -1).contiguous(), generator=generator)
        uniform = torch.rand(gamma.shape, generator=generator, dtype=gamma.dtype, device=gamma.device)
        return gamma.log() + torch.log1p(-uniform) / self.alpha


class Funnel(_Analytic):
    """E(v, x) = v² / (2 s²) + sum_i (x_i² exp(-v) + v) / 2: scales from the tip to the mouth (Neal 2003).

    `dim` counts v and the x_i. log Z = (D log 2 pi) / 2 + log s, the variance of each x_i is exp(s² / 2).
    """

    def __init__(self, dim: int = 2, scale: float = 1.5):
        super().__init__()
        self.scale = scale
        variance = torch.full((dim,), math.exp(0.5 * scale**2), dtype=torch.float64)
        variance[0] = scale**2
        log_z = 0.5 * dim * math.log(2 * math.pi) + math.log(scale)
        self._constants(mean=torch.zeros(dim), covariance=variance.diag(), log_z=log_z)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        v, rest = x[:, :1], x[:, 1:]
        return 0.5 * ((v / self.scale).square().squeeze(1) + (rest.square() * (-v).exp() + v).sum(-1))

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """n exact draws, float64."""
        z = self._normal(n, generator)
        v = self.scale * z[:, :1]
        return torch.cat([v, z[:, 1:] * (0.5 * v).exp()], 1)
