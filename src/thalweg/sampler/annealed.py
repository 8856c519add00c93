"""Annealed sampling of a noise-conditional energy: from the known law at t_max down to the lowest noise, in few steps.

With y_t = x + sqrt(t) eps the marginals p_t follow dy/dt = 1/2 grad_y U(y, t) backwards in t (probability-flow ODE;
Song et al. 2021). `Heun` integrates it in sigma = sqrt(t), where the slope is sigma grad_y U, on Karras's grid
(Karras et al. 2022, algorithm 1); with `churn` each step first raises the noise a little, which forgets errors made
before (their algorithm 2). `Ancestral` is the stochastic counterpart of first order: denoise below the target
level, then add noise up to it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.rng import generator as address
from thalweg.energy.base import NoisyEnergyFn, energy_and_grad
from thalweg.energy.compose import AtNoise
from thalweg.sampler.base import Info, normal_like, row_norm
from thalweg.sampler.langevin import MALA
from thalweg.sampler.run import of_block, transitions

BLOCK = 100  # images sampled together: bounds the memory, and the first of many samples do not depend on how many


class AnnealedState(NamedTuple):
    """Positions and the number of steps taken."""

    x: Tensor  # (B, *) noisy positions
    i: Tensor  # ()    steps taken


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Abstract: the levels of an annealed sampler, in model units, and its state at the highest of them.

    sigma_i = (max^(1/rho) + i/n (min^(1/rho) - max^(1/rho)))^rho, i = 0 … n.
    """

    num_steps: int
    sigma_min: float = 0.02
    sigma_max: float = 5.0
    rho: float = 5.0

    noisy = True

    def __post_init__(self):
        check.count(num_steps=self.num_steps)
        check.positive(sigma_min=self.sigma_min, rho=self.rho)
        check.increasing(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        check.finite(rho=self.rho)

    def sigma(self, i: Tensor, like: Tensor) -> Tensor:
        """The noise level after i steps, 0-d, in the type of `like`."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (high + (i.to(like) / self.num_steps) * (low - high)) ** self.rho

    def init(self, energy: NoisyEnergyFn, x: Tensor) -> AnnealedState:
        """The state at sigma_max."""
        return AnnealedState(x, torch.zeros((), dtype=torch.int64, device=x.device))


@dataclass(frozen=True, kw_only=True)
class Heun(Grid):
    """Probability-flow ODE by Heun's method: two gradients a step, second order in the step.

    `churn` is the share by which sigma is raised before each step (0: the deterministic flow). Levels in model units.
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
        x, now, then = state.x, self.sigma(state.i, state.x), self.sigma(state.i + 1, state.x)
        if self.churn > 0:
            raised = torch.clamp(now * (1 + self.churn), max=self.sigma_max)
            x = x + (raised**2 - now**2).clamp(min=0).sqrt() * noise[0]
            now = raised
        x, g = heun_step(energy, x, now, then)
        return AnnealedState(x, state.i + 1), Info(_ones(x), row_norm(g))


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
        x, now, then = state.x, self.sigma(state.i, state.x), self.sigma(state.i + 1, state.x)
        up = self.eta * then * (1 - then**2 / now**2).sqrt()
        down = (then**2 - up**2).sqrt()
        _, g = energy_and_grad(AtNoise(energy, now**2), x)
        x = x + (down - now) * now * g + up * noise[0]
        return AnnealedState(x, state.i + 1), Info(_ones(x), row_norm(g))


def anneal(
    sampler: Any,
    energy: Any,
    n: int,
    *,
    seed: int = 0,
    num_corrections: int = 0,
    precision: str = "fp32",
    of_rows: Callable[[int, int], Any] | None = None,
) -> Iterator[Float[Tensor, "b *d"]]:
    """Blocks of samples of the clean data, n in all, from an energy with `prior(n, generator)` at sigma_max.

    After the last level come `num_corrections` MALA steps on U(., sigma_min²), which removes what the integrator
    left, and one denoising step x = y - t grad U (Robbins 1956; Miyasawa 1961), since the data themselves carry no
    noise. Noise is drawn for whole blocks, so that row i depends on i alone. Where rows have energies of their own, as
    those of given classes, `of_rows(start, stop)` gives the energy of these.
    """
    for block, start in enumerate(range(0, n, BLOCK)):
        draws = address(seed, "sample", block)
        x = energy.prior(BLOCK, draws)[: n - start]
        rows = energy if of_rows is None else of_rows(start, start + len(x))
        # Autocast belongs to this thread: it ends before the block is handed out, or the caller would work under it.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            x = _down(sampler, rows, x, draws, num_corrections)
        yield x


def _down(sampler: Any, energy: Any, x: Tensor, draws: Generator, num_corrections: int) -> Tensor:
    """One block from the highest level to clean data."""
    steps = transitions(of_block(sampler, BLOCK), energy, x, draws)
    for state, _ in itertools.islice(steps, sampler.num_steps):
        x = state.x
    t = x.new_tensor(sampler.sigma_min**2)
    lowest = AtNoise(energy, t)
    corrector = of_block(MALA(step_size=0.2 * float(t)), BLOCK)
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
