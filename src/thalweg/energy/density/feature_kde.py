"""The energy of the smoothed empirical distribution in a space of features: few training rows near, high energy.

    E(x) = -1/beta log( 1/n sum_j exp(beta <w(x), w_j>) ),    w(x) = W (f(x) - m) / |W (f(x) - m)|

on the unit sphere: a von Mises-Fisher kernel of concentration beta at each of n training rows, whose features f are
centred and whitened first. The length of a feature vector of an image tells the amount of ink and its direction the
form, so the length is dropped. Whitening gives all features one scale. As beta grows E tends to minus the largest
cosine, that of the nearest neighbour. (Kernel: Banerjee et al. 2005; whitened features for outliers: Sehwag et al.
2021.)
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import HasShape


class FeatureKernelEnergy(nn.Module):
    """E(x) as above, in [-1, 1]. `of` makes one from training rows. Costs n F multiplications a row.

    Args:
        encoder: The features f, (B, *) to (B, F).
        bank: The w_j, (n, F).
        mean: m (F,).
        whiten: W (F, F).
        beta: The kernel's concentration.
    """

    def __init__(self, encoder: nn.Module, bank: Tensor, mean: Tensor, whiten: Tensor, *, beta: float = 20.0):
        super().__init__()
        check.positive(beta=beta)
        self.encoder, self.beta = encoder, beta
        self.shape: tuple[int, ...] = tuple(encoder.shape) if isinstance(encoder, HasShape) else (len(mean),)
        self.bank: Tensor
        self.mean: Tensor
        self.whiten: Tensor
        for name, value in (("bank", bank), ("mean", mean), ("whiten", whiten)):
            self.register_buffer(name, value.detach().clone())

    @classmethod
    @torch.no_grad()
    def of(
        cls, encoder: nn.Module, x: Float[Tensor, "n *d"], *, beta: float = 20.0, ridge: float = 0.01, block: int = 1024
    ) -> Self:
        """From training rows x: W W' = (C + ridge mean(diag C) I)^-1, C the features' covariance.

        UserError for fewer than two rows.
        """
        if len(x) < 2:
            raise UserError(f"must have 2 rows or more, to whiten their features; it has {len(x)}", argument="x")
        f = torch.cat([encoder(part) for part in x.split(block)])
        mean, cov = f.mean(0), torch.cov(f.t())
        eye = torch.eye(len(cov), device=cov.device)
        cov = cov + max(ridge * cov.diagonal().mean().item(), torch.finfo(f.dtype).tiny) * eye
        whiten = torch.linalg.inv(torch.linalg.cholesky(cov.double())).t().to(f.dtype)
        return cls(encoder, F.normalize((f - mean) @ whiten, dim=1), mean, whiten, beta=beta)

    @classmethod
    def example(cls) -> Self:
        """A small one, on linear features."""
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        return cls.of(nn.Linear(4, 4), x, beta=5.0)

    def forward(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """E(x) in [-1, 1], low where training rows are near."""
        return self._energy(self.cosines(x))

    def leave_one_out(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """E(x), (B,), of rows that are in the bank themselves: the kernel nearest to each, its own, is left out."""
        cosines = self.cosines(x)
        own = F.one_hot(cosines.argmax(1), cosines.shape[1]).bool()
        return self._energy(cosines.masked_fill(own, -math.inf), out=1)

    def cosines(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b n"]:
        """<w(x), w_j> with every row of the bank."""
        w = F.normalize((self.encoder(x) - self.mean) @ self.whiten, dim=1)
        return w @ self.bank.t()

    def _energy(self, cosines: Tensor, out: int = 0) -> Tensor:
        return (math.log(cosines.shape[1] - out) - (self.beta * cosines).logsumexp(1)) / self.beta
