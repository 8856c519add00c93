"""Annealed sampling by a second-order multistep method: one gradient a step, where Heun's method takes two.

With lambda = -log sigma and the denoiser's estimate D(y, sigma) = y - sigma² grad U(y, sigma²), all of

    dy = (1 + eta) (D - y) dlambda + sigma sqrt(2 eta) dW

have the marginals p_t: the probability flow for eta = 0, the reverse diffusion for eta = 1. The noise of a larger eta
reduces earlier errors, those of the energy included. What is linear in y is integrated exactly, and D is extrapolated
to the middle of the step from its values at this level and the one before: DPM-Solver++(2M) and its form for stochastic
equations (Lu et al. 2022).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import NoisyEnergyFn, energy_and_grad
from thalweg.energy.wrappers import AtNoise
from thalweg.sampler.annealed import Grid
from thalweg.sampler.base import Info, normal_like, row_norm


class MultistepState(NamedTuple):
    """Positions, the number of steps taken, and the estimate at the level before."""

    x: Tensor  # (B, *) noisy positions
    i: Tensor  # ()    steps taken
    estimate: Tensor  # (B, *) E[x | y] where the last step began; the positions, unused, before the first


@dataclass(frozen=True, kw_only=True)
class Multistep(Grid):
    """y' = a y + (1 - a) D~ + sigma' sqrt(1 - exp(-2 eta h)) z, a = exp(-(1 + eta) h), h = log(sigma / sigma').

    D~ = D + h / (2 h_before) (D - D_before); D in the first step. Second order in the step.

    Args:
        num_steps: Number of steps.
        rho: Exponent of the grid; larger puts more steps at low noise.
        eta: Size of the noise; 0: the deterministic flow, 1: the reverse diffusion.
    """

    num_steps: int = 24
    eta: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check.non_negative(eta=self.eta)

    def init(self, energy: NoisyEnergyFn, x: Tensor) -> MultistepState:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The state at the energy's highest level; UserError for an energy without levels."""
        return MultistepState(*super().init(energy, x), x)

    def draw(self, state: MultistepState, generator: Generator) -> tuple[Tensor, ...]:
        """The noise of one step; none for the deterministic flow."""
        return (normal_like(state.x, generator),) if self.eta > 0 else ()

    def step(
        self, energy: NoisyEnergyFn, state: MultistepState, noise: tuple[Tensor, ...]
    ) -> tuple[MultistepState, Info]:
        """One level down."""
        x, i, before = state
        last, now, then = (self.sigma(energy, i + k, x) for k in (-1, 0, 1))
        _, g = energy_and_grad(AtNoise(energy, now**2), x)
        estimate = x - now**2 * g
        h = (now / then).log()
        share = -torch.expm1(-(1 + self.eta) * h)
        ahead = torch.where(i > 0, 0.5 * h / (last / now).log(), 0.0)
        y = x + share * (estimate + ahead * (estimate - before) - x)
        if self.eta > 0:
            y = y + then * (-torch.expm1(-2 * self.eta * h)).sqrt() * noise[0]
        return MultistepState(y, i + 1, estimate), Info(torch.ones_like(g.flatten(1)[:, 0]), row_norm(g))
