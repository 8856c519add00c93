"""Hamiltonian Monte Carlo: positions move along a path of nearly constant H(x, p) = E(x) + |p|² / 2.

`leapfrog` integrates dx/dt = p, dp/dt = -dE/dx. It is reversible and keeps volumes, so that a Metropolis test on H
makes the chain exact.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import EnergyFn, energy_and_grad
from thalweg.sampler.base import Info, normal_like, per_row, row_norm
from thalweg.sampler.langevin import LangevinState, first_step
from thalweg.sampler.schedule import Value, check_value, value_at


class Phase(NamedTuple):
    """Positions x and momenta p, (B, *), with the energies u (B,) and the gradients g (B, *) at x."""

    x: Tensor
    p: Tensor
    u: Tensor
    g: Tensor


def leapfrog(energy: EnergyFn, start: Phase, step_size: float | Tensor, num_steps: int) -> Phase:
    """Stormer-Verlet: p -= h/2 dE/dx, x += h p, p -= h/2 dE/dx, `num_steps` times. One gradient a step.

    The error of H is O(h²). `step_size` h is a number or a tensor that broadcasts against x.
    """
    x, p, u, g = start
    for _ in range(num_steps):
        p = p - 0.5 * step_size * g
        x = x + step_size * p
        u, g = energy_and_grad(energy, x)
        p = p - 0.5 * step_size * g
    return Phase(x, p, u, g)


def acceptance_probability(start: Phase, end: Phase, temperature: float | Tensor) -> Float[Tensor, " b"]:
    """min(1, exp((H(start) - H(end)) / T)), (B,); 0 for an end that is not finite."""
    log_ratio = log_acceptance_ratio(start, end, temperature)
    sound = end.u.isfinite() & end.g.flatten(1).isfinite().all(1) & ~log_ratio.isnan()
    return torch.where(sound, log_ratio.clamp(max=0).exp(), 0)


def log_acceptance_ratio(start: Phase, end: Phase, temperature: float | Tensor) -> Float[Tensor, " b"]:
    """(H(start) - H(end)) / T, (B,)."""
    kinetic = 0.5 * ((start.p - end.p) * (start.p + end.p)).flatten(1).sum(1)
    return (start.u - end.u + kinetic) / temperature


@dataclass(frozen=True, kw_only=True)
class HMC:
    """Hamiltonian Monte Carlo, exact for exp(-E / T) (Duane et al. 1987; Neal 2011). `num_leapfrog` gradients a step.

    Each step draws p ~ N(0, T), follows the leapfrog path, and accepts its end with probability min(1, exp(-dH / T)).
    An end whose energy or gradient is not finite is rejected. The optimal acceptance is 0.651 (Beskos et al. 2013).

    Args:
        step_size: h, in units of x, a number, a 0-d tensor or a schedule.
        num_leapfrog: Steps of one path.
        temperature: T in nats, a number, a 0-d tensor or a schedule.
        jitter: Each chain's step takes h (1 + jitter r), r uniform on [-1, 1]: a path as long as a period of the target
            would end where it began, for ever (Neal 2011, section 3.2). The chain stays exact, as r does not depend on
            x; in [0, 1).
    """

    step_size: Value
    num_leapfrog: int
    temperature: Value = 1.0
    jitter: float = 0.2

    target_acceptance = 0.651

    def __post_init__(self):
        check_value(check.positive, step_size=self.step_size, temperature=self.temperature)
        check.count(num_leapfrog=self.num_leapfrog)
        check.share(jitter=self.jitter)

    @classmethod
    def example(cls) -> Self:
        """Paths that suit energies of unit scale."""
        return cls(step_size=0.3, num_leapfrog=3)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> LangevinState:
        """The state at x, for one gradient."""
        return LangevinState(x.detach(), *energy_and_grad(energy, x), first_step(x))

    def draw(self, state: LangevinState, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(z, v, r): a standard normal number a coordinate; uniform ones a chain, for the test and the step size."""
        z = normal_like(state.x, generator)
        v, r = torch.rand(len(z), 2, generator=generator, dtype=z.dtype, device=z.device).unbind(1)
        return z, v, r

    def propose(self, energy: EnergyFn, state: LangevinState, noise: tuple[Tensor, ...]) -> tuple[Phase, Phase]:
        """Both ends of the path: (x, p) and (x', p')."""
        z, _, r = noise
        start = Phase(state.x, value_at(self.temperature, state.i) ** 0.5 * z, state.u, state.g)
        step_size = value_at(self.step_size, state.i) * (1 + self.jitter * (2 * r - 1))
        return start, leapfrog(energy, start, per_row(step_size, z), self.num_leapfrog)

    def step(self, energy: EnergyFn, state: LangevinState, noise: tuple[Tensor, ...]) -> tuple[LangevinState, Info]:
        """A path, and its end where the chain's own uniform number accepts it."""
        start, end = self.propose(energy, state, noise)
        acceptance = acceptance_probability(start, end, value_at(self.temperature, state.i))
        accept = noise[1] < acceptance
        rows = per_row(accept, end.x)
        x, u, g = (
            torch.where(rows, end.x, state.x),
            torch.where(accept, end.u, state.u),
            torch.where(rows, end.g, state.g),
        )
        return LangevinState(x, u, g, state.i + 1), Info(acceptance=acceptance, grad_norm=row_norm(end.g))
