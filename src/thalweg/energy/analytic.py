"""Energies with moments, draws and normaliser in closed form, as a reference for samplers and estimators.

Each is a module with no parameters. `log_z` is log of the integral of exp(-E), in nats; `mean` (D,) and
`covariance` (D, D) belong to p = exp(-E) / Z; `draw(n, generator)` gives exact, independent draws. Constants
are kept in float64 and cast to x's type, so the same object serves float32 chains and float64 proofs.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError

Numbers = Sequence[float] | Sequence[Sequence[float]] | Tensor


class _Analytic(nn.Module):
    """Abstract: constants as float64 buffers, `shape` from the mean, `example()` from the defaults."""

    mean: Tensor
    covariance: Tensor
    log_z: Tensor

    def _constants(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64), persistent=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one position."""
        return tuple(self.mean.shape)

    @classmethod
    def example(cls) -> Self:
        """The energy of the default arguments."""
        return cls()

    def _normal(self, n: int, generator: Generator) -> Tensor:
        kind = {"dtype": torch.float64, "device": self.mean.device}
        return torch.randn(n, *self.shape, generator=generator, **kind)


class Gaussian(_Analytic):
    """E(x) = (x - m)' C^-1 (x - m) / 2, log Z = (D log 2 pi + log det C) / 2.

    `mean` (D,) and `covariance` (D, D), the identity by default; UserError if it is not positive definite.
    """

    precision: Tensor
    factor: Tensor

    def __init__(self, mean: Numbers = (0.0, 0.0), covariance: Numbers | None = None):
        super().__init__()
        m = torch.as_tensor(mean, dtype=torch.float64)
        dim = len(m)
        c = torch.as_tensor(torch.eye(dim) if covariance is None else covariance, dtype=torch.float64)
        if c.shape != (dim, dim):
            condition = f"must have the shape {(dim, dim)}, to fit the mean; it has {tuple(c.shape)}"
            raise UserError(condition, argument="covariance")
        factor, failed = torch.linalg.cholesky_ex(c)
        if failed or not torch.equal(c, c.T):
            raise UserError("must be symmetric and positive definite", argument="covariance", value=c.tolist())
        precision = torch.cholesky_inverse(factor)
        log_z = 0.5 * dim * math.log(2 * math.pi) + factor.diagonal().log().sum()
        self._constants(mean=m, covariance=c, precision=precision, factor=factor, log_z=log_z)

    @classmethod
    def example(cls) -> Self:
        """A correlated Gaussian in two dimensions."""
        return cls((1.0, -0.5), ((1.0, 0.6), (0.6, 0.8)))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        d = x - self.mean.to(x)
        # A broadcast product, not a matmul: BLAS rounds one row and many rows differently, this does not.
        return 0.5 * (d * (d.unsqueeze(-1) * self.precision.to(x)).sum(-2)).sum(-1)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """n exact draws, float64."""
        return self.mean + self._normal(n, generator) @ self.factor.T


class GaussianMixture(_Analytic):
    """E(x) = -log sum_k w_k exp(-|x - m_k|² / (2 s²)), log Z = D log(2 pi s²) / 2.

    `means` (K, D), one `scale` s for all, `weights` (K,) normalised here, equal if not given. The default is
    eight modes on a ring of radius 2.
    """

    means: Tensor
    weights: Tensor

    def __init__(self, means: Numbers | None = None, scale: float = 0.3, weights: Numbers | None = None):
        super().__init__()
        check.positive(scale=scale)
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        ring = 2 * torch.stack([angle.cos(), angle.sin()], 1)
        m = torch.as_tensor(ring if means is None else means, dtype=torch.float64)
        w = torch.as_tensor(torch.ones(len(m)) if weights is None else weights, dtype=torch.float64)
        if w.shape != m.shape[:1] or not bool((w > 0).all()):
            condition = f"must be {len(m)} positive numbers, one for each mean"
            raise UserError(condition, argument="weights", value=w.tolist())
        w, dim = w / w.sum(), m.shape[1]
        mean = w @ m
        covariance = scale**2 * torch.eye(dim).to(m) + (m - mean).T @ (w[:, None] * (m - mean))
        self.scale = scale
        log_z = 0.5 * dim * math.log(2 * math.pi * scale**2)
        self._constants(mean=mean, covariance=covariance, means=m, weights=w, log_z=log_z)
        self.num_classes = len(m)

    def logits(self, x: Float[Tensor, "b d"], *t: Tensor) -> Float[Tensor, "b k"]:
        """log w_k - |x - m_k|² / (2 s²): scores whose softmax is the posterior of the components."""
        squared = (x.unsqueeze(1) - self.means.to(x)).square().sum(-1)
        return self.weights.to(x).log() - squared / (2 * self.scale**2)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return -torch.logsumexp(self.logits(x), dim=1)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """n exact draws, float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.means[k] + self.scale * self._normal(n, generator)
