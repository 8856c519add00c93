"""Annealed sampling of a noise-conditional energy: from the known law at t_max down to the lowest noise.

With y_t = x + sqrt(t) eps the marginals p_t follow dy/dt = 1/2 grad_y U(y, t) backwards in t (probability-flow ODE;
Song et al. 2021). `Heun` integrates dy/dsigma = sigma grad_y U on the grid of Karras et al. (2022, algorithm 1); with
`churn` each step first adds noise, which reduces earlier errors (their algorithm 2). `Ancestral` is the stochastic
sampler of first order: denoise below the target level, then add noise up to it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.device import autocast
from thalweg.core.rng import generator as address
from thalweg.energy.base import (
    AnyEnergy,
    NoiseConditional,
    NoisyEnergyFn,
    energy_and_grad,
    require_noise_conditional,
    sigma_range,
)
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.wrappers import AtNoise
from thalweg.sampler.base import AnnealedSampler, Info, normal_like, require_annealed, row_norm
from thalweg.sampler.chain import of_block, transitions
from thalweg.sampler.langevin import MALA

BLOCK = 100  # images sampled together: bounds the memory, and the first of many samples do not depend on how many


class AnnealedState(NamedTuple):
    """Positions and the number of steps taken."""

    x: Tensor  # (B, *) noisy positions
    i: Tensor  # ()    steps taken


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Abstract: the noise levels of an annealed sampler, from the root of the energy's t_max to that of its t_min.

    sigma_i = (max^(1/rho) + i/n (min^(1/rho) - max^(1/rho)))^rho, i = 0 … n = `num_steps`.
    """

    num_steps: int
    rho: float = 5.0

    gradient_only = True

    def __post_init__(self):
        check.count(num_steps=self.num_steps)
        check.positive(rho=self.rho)
        check.finite(rho=self.rho)

    def sigma(self, energy: AnyEnergy, i: Tensor, like: Tensor) -> Tensor:
        """The noise level after i steps, 0-d, in the type of `like`."""
        return karras_level(i.to(like) / self.num_steps, *sigma_range(energy), self.rho)

    def init(self, energy: NoisyEnergyFn, x: Tensor) -> AnnealedState:
        """The state at the energy's highest level; UserError for an energy without levels."""
        sigma_range(energy)
        return AnnealedState(x, torch.zeros((), dtype=torch.int64, device=x.device))


@dataclass(frozen=True, kw_only=True)
class Heun(Grid):
    """Probability-flow ODE by Heun's method: two gradients a step, second order in the step.

    Args:
        num_steps: Number of steps.
        rho: Exponent of the grid; larger puts more steps at low noise.
        churn: Share by which sigma is raised before each step, up to the highest level; 0: the deterministic flow.
    """

    num_steps: int = 30
    churn: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check.non_negative(churn=self.churn)

    def draw(self, state: AnnealedState, generator: Generator) -> tuple[Tensor, ...]:
        """The churn's noise; none for the deterministic flow."""
        return (normal_like(state.x, generator),) if self.churn > 0 else ()

    def step(
        self, energy: NoisyEnergyFn, state: AnnealedState, noise: tuple[Tensor, ...]
    ) -> tuple[AnnealedState, Info]:
        """One level down."""
        x, i = state.x, state.i
        now, then = self.sigma(energy, i, x), self.sigma(energy, i + 1, x)
        if self.churn > 0:
            raised = torch.clamp(now * (1 + self.churn), max=sigma_range(energy)[1])
            x = x + (raised**2 - now**2).clamp(min=0).sqrt() * noise[0]
            now = raised
        x, g = heun_step(energy, x, now, then)
        return AnnealedState(x, i + 1), Info(_ones(x), row_norm(g))


@dataclass(frozen=True, kw_only=True)
class Ancestral(Grid):
    """y' = y + (down - now) now grad U + up z, down² + up² = then²: one gradient a step, first order.

    The mean moves along the flow to sigma_down, then noise of size sigma_up = eta then sqrt(1 - then²/now²) is
    added, so the law at the next level is p_then. eta = 0 is the Euler method of the deterministic flow, eta = 1
    the reverse diffusion.
    """

    num_steps: int = 60
    eta: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check.share(eta=self.eta)

    def draw(self, state: AnnealedState, generator: Generator) -> tuple[Tensor, ...]:
        """The noise of one step."""
        return (normal_like(state.x, generator),)

    def step(
        self, energy: NoisyEnergyFn, state: AnnealedState, noise: tuple[Tensor, ...]
    ) -> tuple[AnnealedState, Info]:
        """One level down."""
        x, i = state.x, state.i
        now, then = self.sigma(energy, i, x), self.sigma(energy, i + 1, x)
        up = self.eta * then * (1 - then**2 / now**2).sqrt()
        down = (then**2 - up**2).sqrt()
        _, g = energy_and_grad(AtNoise(energy, now**2), x)
        x = x + (down - now) * now * g + up * noise[0]
        return AnnealedState(x, i + 1), Info(_ones(x), row_norm(g))


def karras_level(share: Tensor, low: float, high: float, rho: float) -> Tensor:
    """The noise deviation at a share in [0, 1] of the way from `high` down to `low`, even in sigma^(1/rho).

    (high^(1/rho) + share (low^(1/rho) - high^(1/rho)))^rho (Karras et al. 2022, equation 5).
    """
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return (top + share * (bottom - top)) ** rho


def anneal(
    sampler: AnnealedSampler[Any],
    energy: NoiseConditional,
    n: int,
    *,
    seed: int = 0,
    num_corrections: int = 0,
    precision: str = "fp32",
    of_rows: Callable[[int, int], AnyEnergy] | None = None,
) -> Iterator[Float[Tensor, "b *d"]]:
    """Blocks of n samples of the clean data, from the energy's `prior` at t_max down to t_min, then denoised.

    Noise is drawn for whole blocks, so that row i depends on i alone. The last step is x = y - t grad U (Robbins 1956;
    Miyasawa 1961). UserError, before any block, for a sampler that is not annealed or an energy without noise levels
    and `prior`.

    Args:
        sampler: The annealed sampler.
        energy: U(y, t).
        n: The number of samples.
        seed: Seed of all draws.
        num_corrections: MALA steps on U(., t_min) before the last step, against the integrator's error.
        precision: "fp32", or "bf16" for the network under bfloat16 autocast.
        of_rows: The energy of rows start to stop, where rows have different ones, as those of given classes.
    """
    require_annealed(sampler)
    require_noise_conditional(energy)
    return _blocks(sampler, energy, n, seed, num_corrections, precision, of_rows)


def _blocks(
    sampler: AnnealedSampler[Any],
    energy: NoiseConditional,
    n: int,
    seed: int,
    num_corrections: int,
    precision: str,
    of_rows: Callable[[int, int], AnyEnergy] | None,
) -> Iterator[Tensor]:
    device = device_of(energy)
    for block, start in enumerate(range(0, n, BLOCK)):
        draws = address(seed, "sample", block, device=device)
        with torch.inference_mode(False):
            x = energy.prior(BLOCK, draws)[: n - start]
            rows = energy if of_rows is None else of_rows(start, start + len(x))
            # Autocast belongs to the thread: it must end before a block is yielded to the caller.
            with autocast(x.device, precision == "bf16"):
                x = _down(sampler, rows, x, draws, energy.t_min, num_corrections)
        yield x


def _down(
    sampler: AnnealedSampler[Any], energy: AnyEnergy, x: Tensor, draws: Generator, t_min: float, num_corrections: int
) -> Tensor:
    """One block from the highest level to clean data."""
    steps = transitions(of_block(sampler, BLOCK), energy, x, draws)
    for state, _ in itertools.islice(steps, sampler.num_steps):
        x = state.x
    t = x.new_full((), t_min)
    lowest = AtNoise(energy, t)
    corrector = of_block(MALA(step_size=0.2 * float(torch.tensor(t_min, dtype=x.dtype, device="cpu"))), BLOCK)
    for state, _ in itertools.islice(transitions(corrector, lowest, x, draws), num_corrections):
        x = state.x
    return denoise(energy, x, t)


def heun_step(
    energy: NoisyEnergyFn, x: Float[Tensor, "b *d"], now: Tensor, then: Tensor
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"]]:
    """One step of Heun's method on the probability flow dx/dsigma = sigma grad U(x, sigma²), two gradients.

    From sigma `now` to sigma `then`, 0-d, up or down. Returns x there, and grad U at the step's start.
    """
    _, g = energy_and_grad(AtNoise(energy, now**2), x)
    guess = x + (then - now) * now * g
    _, g_then = energy_and_grad(AtNoise(energy, then**2), guess)
    return x + (then - now) / 2 * (now * g + then * g_then), g


def denoise(energy: NoisyEnergyFn, y: Float[Tensor, "b *d"], t: float | Tensor) -> Float[Tensor, "b *d"]:
    """E[x | y] = y - t grad U(y, t), the mean of the clean data given y = x + sqrt(t) eps (Miyasawa 1961)."""
    return y - t * energy_and_grad(AtNoise(energy, t), y)[1]


def _ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[0], dtype=x.dtype, device=x.device)
