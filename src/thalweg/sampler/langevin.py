"""Langevin dynamics, discretised by Euler-Maruyama: x' = x - h dE/dx + sqrt(2 h T) z,  z ~ N(0, I).

As h -> 0 the law of x tends to exp(-E / T) / Z. `ULA` is biased by O(h): on a Gaussian of precision lambda it samples
variance T / (lambda (1 - h lambda / 2)). `MALA` adds a Metropolis test that removes the bias. h and T may be schedules
of the step (`sampler.schedule`); the law that is kept is then the one at each step's own T.
"""

from dataclasses import InitVar, dataclass
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import EnergyFn, energy_and_grad
from thalweg.sampler.base import Info, normal_like, per_row, row_norm
from thalweg.sampler.schedule import TemperatureOfNoise, Value, check_value, value_at


class Position(NamedTuple):
    """The state of a kernel that needs the positions only, (B, *)."""

    x: Tensor


class NumberedPosition(NamedTuple):
    """Positions x (B, *) and the number of the next step i ()."""

    x: Tensor
    i: Tensor


class LangevinState(NamedTuple):
    """Positions x (B, *), their energies u (B,), the energies' gradients g (B, *), the number of the next step i ()."""

    x: Tensor
    u: Tensor
    g: Tensor
    i: Tensor


def first_step(x: Tensor) -> Tensor:
    """The number of a chain's first step, 0-d int64, on the device of x."""
    return torch.zeros((), dtype=torch.int64, device=x.device)


@dataclass(frozen=True, kw_only=True)
class ULA:
    """Unadjusted Langevin algorithm (Parisi 1981; Roberts & Tweedie 1996): one gradient a step, biased by O(h).

    Args:
        step_size: h, in squared units of x, a number, a 0-d tensor or a schedule.
        temperature: T in nats, a number, a 0-d tensor or a schedule; 0: gradient descent. None: 1, or what `noise`
            gives.
        noise: In place of a temperature, the deviation of a step's noise, sqrt(2 h T), in units of x, a number, a 0-d
            tensor or a schedule. It is kept as `temperature`, T = noise² / (2 h).
        clamp: (low, high), to which x' is cut. This changes the law of the chain: its walls get positive probability.
        clip: Bound on each coordinate of h dE/dx, in units of x. This changes the law where gradients are large (Du &
            Mordatch 2019).
    """

    step_size: Value
    temperature: Value | None = None
    noise: InitVar[Value | None] = None
    clamp: tuple[float, float] | None = None
    clip: float | None = None

    gradient_only = True

    def __post_init__(self, noise: Value | None):
        check_value(check.positive, step_size=self.step_size)
        if noise is not None and self.temperature is not None:
            hint = "T = noise² / (2 step_size), so one follows from the other"
            raise UserError("must not be given beside temperature", argument="noise", value=noise, hint=hint)
        if self.temperature is None:
            object.__setattr__(self, "temperature", 1.0 if noise is None else _temperature(noise, self.step_size))
        check_value(check.non_negative, temperature=self.temperature)
        if self.clip is not None:
            check.positive(clip=self.clip)
        if self.clamp is not None and not self.clamp[0] < self.clamp[1]:
            raise UserError("must be (low, high) with low < high", argument="clamp", value=tuple(self.clamp))

    @classmethod
    def example(cls) -> Self:
        """A step that suits energies of unit scale."""
        return cls(step_size=0.05)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> NumberedPosition:
        """The state at x. Costs nothing."""
        return NumberedPosition(x.detach(), first_step(x))

    def draw(self, state: NumberedPosition, generator: Generator) -> tuple[Tensor]:
        """(z,): one standard normal number for each coordinate."""
        return (normal_like(state.x, generator),)

    def step(
        self, energy: EnergyFn, state: NumberedPosition, noise: tuple[Tensor, ...]
    ) -> tuple[NumberedPosition, Info]:
        """One Langevin step. The gradient norm reported is the one at the step's start."""
        (z,) = noise
        assert self.temperature is not None  # since it was made
        h, temperature = value_at(self.step_size, state.i), value_at(self.temperature, state.i)
        u, g = energy_and_grad(energy, state.x)
        drift = h * g
        if self.clip is not None:
            drift = drift.clamp(-self.clip, self.clip)
        x = state.x - drift + (2 * h * temperature) ** 0.5 * z
        if self.clamp is not None:
            x = x.clamp(*self.clamp)
        return NumberedPosition(x, state.i + 1), Info(acceptance=torch.ones_like(u), grad_norm=row_norm(g))


@dataclass(frozen=True, kw_only=True)
class MALA:
    """Metropolis-adjusted Langevin algorithm: ULA's step as proposal, exact for exp(-E / T) (Besag 1994).

    One gradient a step: the state carries it. A proposal whose energy or gradient is not finite is rejected. The
    optimal acceptance is 0.574 (Roberts & Rosenthal 1998).

    Args:
        step_size: h, in squared units of x, a number, a 0-d tensor or a schedule.
        temperature: T in nats, a number, a 0-d tensor or a schedule.
        clip: Bound on each coordinate of h dE/dx in the proposal, in units of x. The chain stays exact, and does not
            stick where gradients are large (truncated MALA; Roberts & Tweedie 1996).
    """

    step_size: Value
    temperature: Value = 1.0
    clip: float | None = None

    target_acceptance = 0.574

    def __post_init__(self):
        check_value(check.positive, step_size=self.step_size, temperature=self.temperature)
        if self.clip is not None:
            check.positive(clip=self.clip)

    @classmethod
    def example(cls) -> Self:
        """A step that suits energies of unit scale."""
        return cls(step_size=0.05)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> LangevinState:
        """The state at x, for one gradient."""
        return LangevinState(x.detach(), *energy_and_grad(energy, x), first_step(x))

    def draw(self, state: LangevinState, generator: Generator) -> tuple[Tensor, Tensor]:
        """(z, v): a standard normal number for each coordinate, a uniform number for each chain."""
        z = normal_like(state.x, generator)
        return z, torch.rand(len(z), generator=generator, dtype=z.dtype, device=z.device)

    def propose(self, state: LangevinState, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """x' = x - d(x) + sqrt(2 h T) z, with the drift d = h g, clipped."""
        h, temperature = self._at(state)
        return state.x - self._drift(h, state.g) + (2 * h * temperature) ** 0.5 * z

    def _at(self, state: LangevinState) -> tuple[float | Tensor, float | Tensor]:
        """(h, T) of the next step."""
        return value_at(self.step_size, state.i), value_at(self.temperature, state.i)

    def _drift(self, h: float | Tensor, g: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        drift = h * g
        return drift if self.clip is None else drift.clamp(-self.clip, self.clip)

    def log_ratio(
        self, state: LangevinState, z: Float[Tensor, "b *d"], u: Float[Tensor, " b"], g: Float[Tensor, "b *d"]
    ) -> Float[Tensor, " b"]:
        """log p(x') q(x | x') / (p(x) q(x' | x)), for the proposal's energy u and gradient g.

        With s = (d(x) + d(x')) / sqrt(2 h T), log q(x | x') - log q(x' | x) = z·s - |s|² / 2: positions
        cancel, so nothing is lost to the difference of two large numbers.
        """
        h, temperature = self._at(state)
        s = (self._drift(h, state.g) + self._drift(h, g)) / (2 * h * temperature) ** 0.5
        return (state.u - u) / temperature + (s * (z - 0.5 * s)).flatten(1).sum(1)

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
        moved = LangevinState(torch.where(rows, x, state.x), torch.where(accept, u, state.u), g, state.i + 1)
        return moved, Info(acceptance=acceptance, grad_norm=row_norm(g))


def _temperature(noise: Value, step_size: Value) -> Value:
    """T = noise² / (2 h): a number, or a schedule where one of the two is."""
    check_value(check.non_negative, noise=noise)
    if callable(noise) or callable(step_size):
        return TemperatureOfNoise(noise=noise, step_size=step_size)
    return noise**2 / (2 * step_size)
