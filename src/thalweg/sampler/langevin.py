"""Langevin dynamics, discretised by Euler-Maruyama: x' = x - h dE/dx + sqrt(2 h T) z,  z ~ N(0, I).

As h -> 0 the law of x tends to exp(-E / T) / Z. `ULA` is biased by O(h): on a Gaussian of precision lambda it samples
variance T / (lambda (1 - h lambda / 2)). `MALA` adds a Metropolis test that removes the bias.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import EnergyFn, energy_and_grad
from thalweg.sampler.base import Info, normal_like, per_row, row_norm

Number = float | Tensor


class Position(NamedTuple):
    """The state of a kernel that needs the positions only, (B, *)."""

    x: Tensor


class LangevinState(NamedTuple):
    """Positions x (B, *), their energies u (B,) and the energies' gradients g (B, *)."""

    x: Tensor
    u: Tensor
    g: Tensor


def _check(step_size: Number, temperature: Number, clip: float | None) -> None:
    check.finite(step_size=step_size, temperature=temperature)
    check.positive(step_size=step_size)
    if clip is not None:
        check.positive(clip=clip)


@dataclass(frozen=True, kw_only=True)
class ULA:
    """Unadjusted Langevin algorithm (Parisi 1981; Roberts & Tweedie 1996): one gradient a step, biased by O(h).

    Args:
        step_size: h, in squared units of x, a number or a 0-d tensor.
        temperature: T in nats, a number or a 0-d tensor; 0: gradient descent.
        clamp: (low, high), to which x' is cut. This changes the law of the chain: its walls get positive probability.
        clip: Bound on each coordinate of h dE/dx, in units of x. This changes the law where gradients are large (Du &
            Mordatch 2019).
    """

    step_size: Number
    temperature: Number = 1.0
    clamp: tuple[float, float] | None = None
    clip: float | None = None

    gradient_only = True

    def __post_init__(self):
        _check(self.step_size, self.temperature, self.clip)
        check.non_negative(temperature=self.temperature)
        if self.clamp is not None and not self.clamp[0] < self.clamp[1]:
            raise UserError("must be (low, high) with low < high", argument="clamp", value=tuple(self.clamp))

    @classmethod
    def example(cls) -> Self:
        """A step that suits energies of unit scale."""
        return cls(step_size=0.05)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> Position:
        """The state at x. Costs nothing."""
        return Position(x.detach())

    def draw(self, state: Position, generator: Generator) -> tuple[Tensor]:
        """(z,): one standard normal number for each coordinate."""
        return (normal_like(state.x, generator),)

    def step(self, energy: EnergyFn, state: Position, noise: tuple[Tensor, ...]) -> tuple[Position, Info]:
        """One Langevin step. The gradient norm reported is the one at the step's start."""
        (z,) = noise
        u, g = energy_and_grad(energy, state.x)
        drift = self.step_size * g
        if self.clip is not None:
            drift = drift.clamp(-self.clip, self.clip)
        x = state.x - drift + (2 * self.step_size * self.temperature) ** 0.5 * z
        if self.clamp is not None:
            x = x.clamp(*self.clamp)
        return Position(x), Info(acceptance=torch.ones_like(u), grad_norm=row_norm(g))


@dataclass(frozen=True, kw_only=True)
class MALA:
    """Metropolis-adjusted Langevin algorithm: ULA's step as proposal, exact for exp(-E / T) (Besag 1994).

    One gradient a step: the state carries it. A proposal whose energy or gradient is not finite is rejected. The
    optimal acceptance is 0.574 (Roberts & Rosenthal 1998).

    Args:
        step_size: h, in squared units of x, a number or a 0-d tensor.
        temperature: T in nats, a number or a 0-d tensor.
        clip: Bound on each coordinate of h dE/dx in the proposal, in units of x. The chain stays exact, and does not
            stick where gradients are large (truncated MALA; Roberts & Tweedie 1996).
    """

    step_size: Number
    temperature: Number = 1.0
    clip: float | None = None

    target_acceptance = 0.574

    def __post_init__(self):
        _check(self.step_size, self.temperature, self.clip)
        check.positive(temperature=self.temperature)

    @classmethod
    def example(cls) -> Self:
        """A step that suits energies of unit scale."""
        return cls(step_size=0.05)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> LangevinState:
        """The state at x, for one gradient."""
        return LangevinState(x.detach(), *energy_and_grad(energy, x))

    def draw(self, state: LangevinState, generator: Generator) -> tuple[Tensor, Tensor]:
        """(z, v): a standard normal number for each coordinate, a uniform number for each chain."""
        z = normal_like(state.x, generator)
        return z, torch.rand(len(z), generator=generator, dtype=z.dtype, device=z.device)

    def propose(self, state: LangevinState, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """x' = x - d(x) + sqrt(2 h T) z, with the drift d = h g, clipped."""
        return state.x - self._drift(state.g) + (2 * self.step_size * self.temperature) ** 0.5 * z

    def _drift(self, g: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        drift = self.step_size * g
        return drift if self.clip is None else drift.clamp(-self.clip, self.clip)

    def log_ratio(
        self, state: LangevinState, z: Float[Tensor, "b *d"], u: Float[Tensor, " b"], g: Float[Tensor, "b *d"]
    ) -> Float[Tensor, " b"]:
        """log p(x') q(x | x') / (p(x) q(x' | x)), for the proposal's energy u and gradient g.

        With s = (d(x) + d(x')) / sqrt(2 h T), log q(x | x') - log q(x' | x) = z·s - |s|² / 2: positions
        cancel, so nothing is lost to the difference of two large numbers.
        """
        s = (self._drift(state.g) + self._drift(g)) / (2 * self.step_size * self.temperature) ** 0.5
        return (state.u - u) / self.temperature + (s * (z - 0.5 * s)).flatten(1).sum(1)

    def step(self, energy: EnergyFn, state: LangevinState, noise: tuple[Tensor, ...]) -> tuple[LangevinState, Info]:
        """Propose, then accept each chain on its own uniform number."""
        z, v = noise
        x = self.propose(state, z)
        u, g = energy_and_grad(energy, x)
        log_ratio = self.log_ratio(state, z, u, g)
        sound = u.isfinite() & g.flatten(1).isfinite().all(1) & ~log_ratio.isnan()
        acceptance = torch.where(sound, log_ratio.clamp(max=0).exp(), 0)
        accept = v < acceptance
        rows = per_row(accept, x)
        g = torch.where(rows, g, state.g)
        moved = LangevinState(torch.where(rows, x, state.x), torch.where(accept, u, state.u), g)
        return moved, Info(acceptance=acceptance, grad_norm=row_norm(g))
