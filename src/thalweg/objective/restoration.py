"""Restoration contrast: tell data from damaged data, and restore the undamaged data.

Noise-contrastive estimation (Gutmann & Hyvärinen 2010) with negatives made from the data's own parts
(`objective.corruption`) and one negative a datum:

    loss = mean softplus(E(x)) + mean softplus(-E(x')),    at its minimum E(x) = -log p(x) / q(x),

p the data's law and q that of damaged data. The energy is minus a log-likelihood *ratio*, which does not make an image
likely for being simple, as a likelihood does (Ren et al. 2019). It is not normalised. An energy that has `parts`
(`energy.networks.autoencoder`) is also trained to restore, |D(f(x')) - x|², and to match two views of one image among
the other images of the batch and the damaged ones (InfoNCE; van den Oord et al. 2018, Chen et al. 2020; damage as
negatives: Tack et al. 2020). There are no chains and no labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Capability, EnergyFn
from thalweg.energy.networks.autoencoder import Parts
from thalweg.objective.base import Batch, Empty, Stateless
from thalweg.objective.contrastive import health
from thalweg.objective.corruption import Damage, warp

Corrupt = Callable[[Tensor, Generator], Tensor]


@runtime_checkable
class Restoring(Protocol, metaclass=Capability):
    """An energy that also restores and embeds (`energy.networks.autoencoder`); others are trained by NCE alone."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """E(x), (B,)."""
        ...

    def parts(self, x: Tensor, /) -> Parts:
        """`energy` (B,), `restored` (B, *) and `embedded` (B, K), from one pass."""
        ...

    def embed(self, x: Tensor, /) -> Tensor:
        """Unit vectors in which views are compared, (B, K)."""
        ...


@dataclass(frozen=True, kw_only=True)
class RestorationContrast(Stateless):
    """NCE + `views` InfoNCE + `restore` mean |D(f(.)) - x|². Costs one pass over four times the batch.

    Args:
        damage: Makes the negatives of a batch, given a generator; None: `objective.corruption.Damage`.
        restore: Weight of the restoration of data and of damaged data.
        views: Weight of InfoNCE between two warped views of each image.
        temperature: InfoNCE's temperature.
        stretch: Deviation of each entry of the views' affine maps.
        shift: Deviation of the views' shifts, in half sides.
        bend: Deviation of the views' smooth displacement, in half sides.
    """

    damage: Corrupt | None = None
    restore: float = 0.02
    views: float = 1.0
    temperature: float = 0.1
    stretch: float = 0.2
    shift: float = 0.06
    bend: float = 0.1
    compiles = True

    def __post_init__(self):
        if self.damage is not None and not callable(self.damage):
            hint = "write a spec such as {type: thalweg.objective.corruption:Damage}"
            raise UserError("must be callable", argument="damage", value=self.damage, hint=hint)
        check.non_negative(restore=self.restore, views=self.views)
        check.non_negative(stretch=self.stretch, shift=self.shift, bend=self.bend)
        check.positive(temperature=self.temperature)

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, Tensor]:
        """(the two views one after the other, a damaged copy) of the batch; vectors are their own views."""
        views = torch.cat([batch.x, batch.x])
        if views.ndim == 4:
            views = warp(views, generator, stretch=self.stretch, shift=self.shift, bend=self.bend)
        return views, (self.damage or Damage())(batch.x, generator)

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The loss in nats and its parts; `margin` is the mean energy of damaged data minus that of data."""
        views, damaged = noise
        x, n = torch.cat([batch.x, damaged]), len(batch.x)
        restoring = energy if isinstance(energy, Restoring) else None
        parts = None if restoring is None else restoring.parts(x)
        real, fake = (energy(x) if parts is None else parts.energy).chunk(2)
        loss = nce = F.softplus(real).mean() + F.softplus(-fake).mean()
        metrics = {"nce": nce, "energy_real": real.mean(), "energy_fake": fake.mean()}
        metrics |= {"margin": fake.mean() - real.mean(), "overlap": health.overlap(real.detach(), fake.detach())}
        if restoring is not None and parts is not None:
            error = (parts.restored - torch.cat([batch.x, batch.x])).flatten(1).square().sum(1).mean()
            one, other = restoring.embed(views).chunk(2)
            apart = _info_nce(one, other, parts.embedded[n:], self.temperature)
            loss = loss + self.restore * error + self.views * apart
            metrics |= {"restoration": error, "views": apart}
        return loss, state, {name: value.detach() for name, value in metrics.items()}


def _info_nce(a: Tensor, b: Tensor, others: Tensor, temperature: float) -> Float[Tensor, ""]:
    """InfoNCE in nats: the mean cross-entropy of matching a to b among `others` (B, K), and b to a."""
    same, own = a @ b.t(), torch.arange(len(a), device=a.device)
    logits = (torch.cat([s, v @ others.t()], 1) / temperature for s, v in ((same, a), (same.t(), b)))
    return torch.stack([F.cross_entropy(rows, own) for rows in logits]).mean()
