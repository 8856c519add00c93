"""The likelihood ratio by telling two sets of rows apart: noise-contrastive estimation with a generator for the noise.

Data and generated rows in equal numbers, and a logistic regression whose logit is -E(x): at its minimum

    E(x) = -log p_data(x) / p_gen(x),

so the energy says by how much the generator makes too many of such rows. Neither density is ever needed, only draws.
(Gutmann & Hyvärinen 2010; Sugiyama, Suzuki & Kanamori 2012.)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import EnergyFn
from thalweg.objective.base import Batch, Empty, Stateless


@dataclass(frozen=True, kw_only=True)
class LikelihoodRatio(Stateless):
    """mean softplus of E on data and of -E on generated rows, each side weighing one half.

    `batch.labels` are above 0 for data, 0 for generated rows.

    Args:
        smoothing: s: the targets are 1 - s and s, which bounds |E| by log((1 - s) / s) at the minimum, 3.9 nats for
            0.02.
        noise: Deviation of Gaussian noise added to both sides, so that E is the ratio of the smoothed laws.
        noise_max: If given, each row's deviation is log-uniform between `noise` and this; it is no input of the
            network.
    """

    smoothing: float = 0.0
    noise: float = 0.0
    noise_max: float | None = None
    normalises = True
    compiles = True

    def __post_init__(self):
        check.share(smoothing=self.smoothing)
        if self.smoothing >= 0.5:
            raise UserError("must be in [0, 0.5)", argument="smoothing", value=self.smoothing)
        check.non_negative(noise=self.noise)
        if self.noise_max is not None:
            check.positive(noise=self.noise)
            check.non_negative(noise_max=self.noise_max)
            if self.noise_max < self.noise:
                raise UserError(f"must be noise={self.noise} or more", argument="noise_max", value=self.noise_max)

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(z,) the noise of the smoothing, in its deviations."""
        like = {"dtype": batch.x.dtype, "device": batch.x.device}
        z = torch.randn(batch.x.shape, generator=generator, **like)
        if self.noise_max is None:
            return (self.noise * z,)
        share = torch.rand(len(z), *[1] * (z.ndim - 1), generator=generator, **like)
        return (self.noise * (self.noise_max / self.noise) ** share * z,)

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, Empty, dict[str, Tensor]]:
        """The mean logistic loss in nats: log 2 = 0.693 is chance."""
        if batch.labels is None:
            raise UserError("must be given: 1 for data, 0 for generated rows", argument="labels")
        (z,) = noise
        real = batch.labels > 0
        u = energy(batch.x + z)
        loss = balanced_loss(u, real, self.smoothing)
        right = ((u < 0) == real).float().mean()
        return loss, state, {"energy": u.detach().mean(), "accuracy": right.detach()}


def balanced_loss(u: Float[Tensor, " b"], real: Tensor, smoothing: float = 0.0) -> Tensor:
    """The logistic loss of energies u in nats, both sides weighing one half whatever their numbers."""
    target = torch.where(real, 1 - smoothing, smoothing).to(u.dtype)
    each = F.binary_cross_entropy_with_logits(-u, target, reduction="none")
    weight = torch.where(real, 1 / real.sum().clamp(min=1), 1 / (~real).sum().clamp(min=1))
    return (each * weight).sum() / weight.sum()
