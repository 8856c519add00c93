"""A Metropolis kernel for states that changes one unit of each chain at a time."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import EnergyFn
from thalweg.sampler.base import Info, per_row


class StatesState(NamedTuple):
    """Positions x (B, *) and their energies u (B,)."""

    x: Tensor
    u: Tensor


@dataclass(frozen=True, kw_only=True)
class SingleUnits:
    """One unit, chosen at random, goes to another state with probability min(1, exp(E(x) - E(x'))).

    Exact for exp(-E) / Z and reversible. One energy a step, no gradient.

    Args:
        num_states: Of a unit: 2 for numbers of 0 or 1, K for a last axis that is one-hot over K.
    """

    num_states: int = 2

    def __post_init__(self):
        check.whole("num_states", self.num_states, 2)

    @torch.no_grad()
    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> StatesState:
        """The state at x, for one energy."""
        return StatesState(x.detach(), energy(x.detach()))

    def draw(self, state: StatesState, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(unit, shift, v), (B,) each: which unit, by how many states it moves on, and a uniform number."""
        x = state.x
        units = x[0].numel() // (1 if self.num_states == 2 else self.num_states)
        unit = torch.randint(units, (len(x),), generator=generator, device=x.device)
        shift = torch.randint(1, self.num_states, (len(x),), generator=generator, device=x.device)
        return unit, shift, torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)

    @torch.no_grad()
    def step(self, energy: EnergyFn, state: StatesState, noise: tuple[Tensor, ...]) -> tuple[StatesState, Info]:
        """Propose, then accept each chain on its own uniform number."""
        unit, shift, v = noise
        row = torch.arange(len(unit), device=unit.device)
        if self.num_states == 2:
            x = state.x.flatten(1).clone()
            x[row, unit] = 1 - x[row, unit]
        else:
            x = state.x.reshape(len(row), -1, self.num_states).clone()
            now = x[row, unit].argmax(1)
            x[row, unit] = torch.nn.functional.one_hot((now + shift) % self.num_states, self.num_states).to(x.dtype)
        x = x.reshape(state.x.shape)
        u = energy(x)
        acceptance = torch.nan_to_num((state.u - u).clamp(max=0).exp())
        accept = v < acceptance
        moved = StatesState(torch.where(per_row(accept, x), x, state.x), torch.where(accept, u, state.u))
        return moved, Info(acceptance=acceptance, grad_norm=torch.zeros_like(acceptance))
