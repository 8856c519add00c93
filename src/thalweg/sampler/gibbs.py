"""Samplers of binary positions, 0 or 1: units are drawn from their exact conditional laws.

The energy must have `conditionals` (`thalweg.energy.base.Bipartite`).
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Bipartite, EnergyFn
from thalweg.sampler.base import Info
from thalweg.sampler.langevin import Position


@dataclass(frozen=True, kw_only=True)
class Gibbs:
    """Block Gibbs sampling of a bipartite energy: h ~ p(h | v), then v' ~ p(v | h) (Geman & Geman 1984; Hinton 2002).

    Exact for exp(-E) / Z at every step. Costs two matrix products and no gradient of the energy. After one step all
    positions are 0 or 1. UserError from a step for an energy without `conditionals`, or with more hidden units.

    Args:
        num_hidden: Number of hidden units of the energy, or more. So many uniform numbers are drawn, of which the first
            are used.
    """

    num_hidden: int

    def __post_init__(self):
        check.count(num_hidden=self.num_hidden)

    @classmethod
    def example(cls) -> Self:
        """For `RBMEnergy.example()`."""
        return cls(num_hidden=3)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> Position:
        """The state at x. Costs nothing."""
        return Position(x.detach())

    def draw(self, state: Position, generator: Generator) -> tuple[Tensor, Tensor]:
        """(r, s): a uniform number for each hidden unit, (B, H), and for each visible one, (B, *)."""
        x = state.x
        kind = {"generator": generator, "dtype": x.dtype, "device": x.device}
        return torch.rand(len(x), self.num_hidden, **kind), torch.rand(x.shape, **kind)

    @torch.no_grad()
    def step(self, energy: EnergyFn, state: Position, noise: tuple[Tensor, ...]) -> tuple[Position, Info]:
        """The hidden units given the visible, then the visible given the hidden; always accepted."""
        if not isinstance(energy, Bipartite):
            hint = "take MALA for any other"
            raise UserError("must offer `conditionals`, as RBMEnergy does", argument="energy", hint=hint)
        conditionals = energy.conditionals
        r, s = noise
        log_odds = conditionals.hidden(state.x)
        if log_odds.shape[1] > r.shape[1]:
            condition = f"must be the energy's number of hidden units, {log_odds.shape[1]}, or more"
            raise UserError(condition, argument="num_hidden", value=r.shape[1])
        x = _units(conditionals.visible(_units(log_odds, r[:, : log_odds.shape[1]])), s)
        one = x.new_ones(len(x))
        return Position(x), Info(acceptance=one, grad_norm=torch.zeros_like(one))


def _units(log_odds: Tensor, u: Tensor) -> Tensor:
    """1 where u falls below the unit's probability, else 0; NaN stays NaN, so that a broken energy shows."""
    p = log_odds.sigmoid()
    return torch.where(p.isnan(), p, (u < p).to(p.dtype))
