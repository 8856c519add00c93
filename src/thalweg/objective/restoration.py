"""Restoration contrast: tell data from damaged data, and put the damage right.

Noise-contrastive estimation (Gutmann & Hyvärinen 2010) with negatives made from the data's own parts
(`objective.damage`) and one negative a datum:

    loss = mean softplus(E(x)) + mean softplus(-E(x')),    at its minimum E(x) = -log p(x) / q(x),

p the data's law and q that of damaged data. The energy is therefore not minus a log-likelihood but minus the logarithm
of a *likelihood ratio* against plain strokes, so that a simple picture is not thought likely for being simple (Ren et
al. 2019). Its constant belongs to q; it is not normalised. An energy that offers `parts` (`energy.autoencoder`) is
also trained to restore, |D(f(x')) - x|², and to know two views of one picture among others (InfoNCE; van den Oord et
al. 2018, Chen et al. 2020), which gives its features their meaning. No chain, no label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.errors import UserError
from thalweg.objective import health
from thalweg.objective.base import Batch, Empty
from thalweg.objective.damage import Damage, warp

Corrupt = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class RestorationContrast:
    """NCE + `restore` mean |D(f(.)) - target|² + `views` InfoNCE at `temperature`. One pass over three times the batch.

    The batch is seen as it is and as a second view, warped by `stretch` and `bend` (deviations, in half sides); both
    count as data, `damage` of it as not. The targets of restoration are the data themselves, also for the damaged
    ones.
    """

    damage: Corrupt | None = None
    restore: float = 0.02
    views: float = 1.0
    temperature: float = 0.2
    stretch: float = 0.12
    bend: float = 0.06
    normalises = False
    noisy = False

    def __post_init__(self):
        if self.damage is not None and not callable(self.damage):
            raise UserError("damage: want a spec such as {type: thalweg.objective.damage:Damage}")
        for name in ("restore", "views", "stretch", "bend"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}={getattr(self, name)}: want zero or more")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: want a positive number")

    def init(self, energy: Any, x: Tensor, generator: Generator) -> Empty:
        """Nothing is kept between steps."""
        return Empty()

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, Tensor]:
        """(a second view, a damaged copy) of the batch; vectors are their own second view."""
        view = batch.x
        if view.ndim == 4:
            view = warp(view, generator, stretch=self.stretch, shift=self.bend, bend=self.bend)
        return view, (self.damage or Damage())(batch.x, generator)

    def loss(
        self, energy: Any, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The loss in nats and what it is made of; `margin` is the mean energy of damage over that of data."""
        view, damaged = noise
        x, n = torch.cat([batch.x, view, damaged]), len(batch.x)
        parts = energy.parts(x) if hasattr(energy, "parts") else None
        u = energy(x) if parts is None else parts.energy
        real, fake = u[: 2 * n], u[2 * n :]
        nce = F.softplus(real).mean() + F.softplus(-fake).mean()
        loss, metrics = nce, {"nce": nce, "energy_real": real.mean(), "energy_fake": fake.mean()}
        metrics |= {"margin": fake.mean() - real.mean(), "overlap": health.overlap(real.detach(), fake.detach())}
        if parts is not None:
            target = torch.cat([batch.x, view, batch.x])
            error = (parts.restored - target).flatten(1).square().sum(1).mean()
            views = _info_nce(parts.embedded[:n], parts.embedded[n : 2 * n], self.temperature)
            loss = loss + self.restore * error + self.views * views
            metrics |= {"restoration": error, "views": views}
        return loss, state, {name: value.detach() for name, value in metrics.items()}


def _info_nce(a: Float[Tensor, "b k"], b: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, ""]:
    """Which of b belongs to each of a, and the other way round: the mean cross-entropy in nats, log B by chance."""
    logits, own = a @ b.t() / temperature, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2
