"""The energy of the smoothed empirical distribution in a space of features: few training rows near, high energy.

    E(x) = -1/beta log( 1/n sum_j exp(beta <w(x), w_j>) ),    w(x) = W (f(x) - m) / |W (f(x) - m)|

on the unit sphere: a von Mises-Fisher kernel of concentration beta at each of n training rows, whose features f are
centred and whitened first. Lengths say how much ink there is and directions what it forms, so the length is dropped;
whitening lets no feature count for being loud. As beta grows E tends to minus the largest cosine, one nearest
neighbour. (Banerjee et al. 2005 for the kernel; whitened features for outliers: Sehwag et al. 2021.)
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FeatureKernelEnergy(nn.Module):
    """E(x) as above, divided by 1 / beta, so that it lies in [-1, 1]; `encoder` maps (B, *) to (B, F).

    Made by `of` from training rows; `bank` (n, F), `mean` (F,) and `whiten` (F, F) are buffers. n F multiplications a
    row.
    """

    def __init__(self, encoder: nn.Module, bank: Tensor, mean: Tensor, whiten: Tensor, *, beta: float = 20.0):
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta={beta}: want a positive concentration")
        self.encoder, self.beta = encoder, beta
        self.shape: tuple[int, ...] = tuple(getattr(encoder, "shape", (len(mean),)))
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

        ValueError for fewer than two rows.
        """
        if len(x) < 2:
            raise ValueError(f"x has {len(x)} rows: want 2 or more to whiten their features")
        f = torch.cat([encoder(part) for part in x.split(block)])
        mean, cov = f.mean(0), torch.cov(f.t())
        cov = cov + max(ridge * cov.diagonal().mean().item(), torch.finfo(f.dtype).tiny) * torch.eye(len(cov))
        whiten = torch.linalg.inv(torch.linalg.cholesky(cov.double())).t().to(f.dtype)
        return cls(encoder, F.normalize((f - mean) @ whiten, dim=1), mean, whiten, beta=beta)

    @classmethod
    def example(cls) -> Self:
        """A small one, on linear features."""
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        return cls.of(nn.Linear(4, 4), x, beta=5.0)

    def forward(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """E(x)."""
        return self._energy(self.cosines(x))

    def left_out(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """E(x) of rows that are in the bank themselves: the kernel nearest to each, its own, is left out."""
        cosines = self.cosines(x)
        own = F.one_hot(cosines.argmax(1), cosines.shape[1]).bool()
        return self._energy(cosines.masked_fill(own, -math.inf), out=1)

    def cosines(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b n"]:
        """<w(x), w_j> with every row of the bank."""
        w = F.normalize((self.encoder(x) - self.mean) @ self.whiten, dim=1)
        return w @ self.bank.t()

    def _energy(self, cosines: Tensor, out: int = 0) -> Tensor:
        return (math.log(cosines.shape[1] - out) - (self.beta * cosines).logsumexp(1)) / self.beta
