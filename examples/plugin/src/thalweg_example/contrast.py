"""Noise-contrastive estimation with Gaussian noise."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import EnergyFn
from thalweg.objective.base import Batch, Empty, Stateless


@dataclass(frozen=True, kw_only=True)
class GaussianContrast(Stateless):
    """A logistic regression that tells data x from noise y ~ q = N(0, scale² I) by the logit -E(x) - log q(x).

    At its minimum E = -log p_data, with its constant (Gutmann & Hyvärinen 2010). The noise must cover the data, so it
    suits few dimensions. No chains, and no second derivatives.

    Args:
        scale: Deviation of the noise in model units, in which standardised data have 1.
    """

    scale: float = 1.5
    normalises = True

    def __post_init__(self):
        check.positive(scale=self.scale)

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(y,): the noise, of the batch's shape."""
        like = {"dtype": batch.x.dtype, "device": batch.x.device}
        return (self.scale * torch.randn(batch.x.shape, generator=generator, **like),)

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, Empty, dict[str, Tensor]]:
        """The mean logistic loss of both sides, in nats; log 4 = 1.386 is chance."""
        (y,) = noise
        real, fake = (-energy(x) - self._log_noise(x) for x in (batch.x, y))
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return loss, state, {"accuracy": right.detach()}

    def _log_noise(self, x: Tensor) -> Tensor:
        """log q(x), (B,)."""
        constant = 0.5 * x[0].numel() * math.log(2 * math.pi * self.scale**2)
        return -0.5 * (x / self.scale).square().flatten(1).sum(1) - constant
