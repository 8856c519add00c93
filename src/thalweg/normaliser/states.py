"""Annealing of energies of states (`energy.base.Discrete`), from independent units fitted to chains.

A bipartite energy is annealed layer by layer, so that each level keeps its block Gibbs kernel (Salakhutdinov & Murray
2008): exp(-E_beta(v)) = exp((1 - beta) a·v - beta F(v)) prod_j (1 + exp(beta f_j(v))), where f are the log-odds of the
hidden units and F(v) = E(v) + sum_j softplus(f_j(v)) is the energy with all of them 0. For a restricted Boltzmann
machine these are its weights and biases times beta. Any other energy is annealed by temperature.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from thalweg.core.rng import generator as address
from thalweg.energy.base import Bipartite, Conditionals, EnergyFn
from thalweg.normaliser.ais import require_exact
from thalweg.normaliser.single_units import SingleUnits
from thalweg.normaliser.tempering import Annealing, Geometric, Target
from thalweg.sampler.base import Sampler
from thalweg.sampler.gibbs import Gibbs

FIT_STEPS = 300  # of the chains that the independent units are fitted to
FIT_SWEEPS = 30  # the same in steps of one unit, times the number of units, where they are more


@dataclass(frozen=True)
class IndependentUnits:
    """E_0(x) = -a·x: units of log-odds a (binary, K = 2) or of log-probabilities a (one-hot over K) up to a constant.

    Args:
        log_odds: a, of the shape of one position.
        num_states: K.
    """

    log_odds: Float[Tensor, "*d"]
    num_states: int

    @classmethod
    def fit(cls, x: Float[Tensor, "n *d"], num_states: int) -> "IndependentUnits":
        """The units with the shares that they have in x, with one more of each state, so that none is impossible."""
        share = (x.double().sum(0) + 1) / (len(x) + num_states)
        return cls(share.logit() if num_states == 2 else share.log(), num_states)

    @property
    def log_z(self) -> Float[Tensor, ""]:
        """The sum over units of log sum_k exp(a_k)."""
        if self.num_states == 2:
            return functional.softplus(self.log_odds).sum()
        return torch.logsumexp(self.log_odds, -1).sum()

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return -(x * self.log_odds.to(x.dtype)).flatten(1).sum(1)

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n *d"]:
        """n exact draws, float64."""
        kind = {"generator": generator, "dtype": torch.float64, "device": self.log_odds.device}
        if self.num_states == 2:
            return (torch.rand(n, *self.log_odds.shape, **kind) < self.log_odds.sigmoid()).double()
        p = self.log_odds.softmax(-1).flatten(0, -2)
        k = torch.multinomial(p, n, replacement=True, generator=generator).T
        return functional.one_hot(k, self.num_states).double().reshape(n, *self.log_odds.shape)


class _Layers:
    """F(v) and the hidden log-odds f(v) of a bipartite energy, kept for the positions that were asked for last."""

    def __init__(self, energy: EnergyFn, conditionals: Conditionals):
        self.energy, self.conditionals = energy, conditionals
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, v: Tensor) -> tuple[Float[Tensor, " b"], Float[Tensor, "b h"]]:
        if self._last is None or not _same(self._last[0], v):
            f = self.conditionals.hidden(v)
            self._last = v, self.energy(v).double() + functional.softplus(f.double()).sum(1), f
        return self._last[1:]


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are one, or one is the other detached."""
    return x is y or (x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride())


@dataclass(frozen=True)
class _BipartiteAt:
    """E_beta(v) = (1 - beta) E_0(v) + beta F(v) - sum_j softplus(beta f_j(v)), and its conditional laws."""

    layers: _Layers
    base: IndependentUnits
    beta: float

    def __call__(self, v: Tensor) -> Tensor:
        rest, f = self.layers(v)
        u = (1 - self.beta) * self.base(v.double()) + self.beta * rest
        return u - functional.softplus(self.beta * f.double()).sum(1)

    @property
    def conditionals(self) -> Conditionals:
        a = (1 - self.beta) * self.base.log_odds

        def visible(h: Tensor) -> Tensor:
            return self.beta * self.layers.conditionals.visible(h) + a.to(h.dtype)

        return Conditionals(lambda v: self.beta * self.layers(v)[1], visible)


@dataclass(frozen=True)
class LayerByLayer:
    """The annealing of a bipartite energy, by block Gibbs."""

    layers: _Layers
    base: IndependentUnits
    gibbs: Gibbs
    dtype: torch.dtype

    @property
    def log_z(self) -> float:
        """That of the base law, with hidden units of 0 or 1 at will."""
        return float(self.base.log_z) + self.gibbs.num_hidden * math.log(2)

    def coordinates(self, x: Tensor) -> Tensor:
        """As they are."""
        return x

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws of the base law."""
        return self.base.draw(n, generator).to(self.dtype)

    def at(self, beta: float) -> _BipartiteAt:
        """E_beta."""
        return _BipartiteAt(self.layers, self.base, beta)

    def kernel(self, step_size: float) -> Sampler[Any]:
        """Block Gibbs, which has no step size."""
        return self.gibbs


@dataclass(frozen=True)
class _InType:
    """The independent units, with draws in the type of the target's positions."""

    base: IndependentUnits
    dtype: torch.dtype

    @property
    def log_z(self) -> Tensor:
        return self.base.log_z

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x)

    def draw(self, n: int, generator: Generator) -> Tensor:
        return self.base.draw(n, generator).to(self.dtype)


def annealing_of_states(
    energy: EnergyFn,
    like: Tensor,
    *,
    num_states: int,
    start: Tensor | None,
    sampler: Sampler[Any] | None,
    num_chains: int,
    seed: int,
) -> Annealing:
    """The annealing to an energy of states, of the type and shape of `like` (0, *)."""
    draws = address(seed, "log-z-fit", device=like.device)
    uniform = IndependentUnits(torch.zeros(like.shape[1:], dtype=torch.float64, device=like.device), num_states)
    if start is None:
        x = uniform.draw(num_chains, draws).to(like.dtype)
    else:
        x = start[torch.arange(num_chains, device=like.device) % len(start)]
    with torch.no_grad():
        energy(x)  # checked to be numbers
    blocks = sampler is None and isinstance(energy, Bipartite)
    if blocks:
        assert isinstance(energy, Bipartite)
        conditionals = energy.conditionals
        kernel: Sampler[Any] = Gibbs(num_hidden=conditionals.hidden(x[:1]).shape[1])
        base = IndependentUnits.fit(_chain(kernel, energy, x, FIT_STEPS, draws), num_states)
        return LayerByLayer(_Layers(energy, conditionals), base, kernel, like.dtype)
    kernel = SingleUnits(num_states=num_states) if sampler is None else sampler
    num_units = like.shape[1:].numel() // (1 if num_states == 2 else num_states)
    steps = max(FIT_STEPS, FIT_SWEEPS * num_units) if sampler is None else FIT_STEPS
    base = IndependentUnits.fit(_chain(kernel, energy, x, steps, draws), num_states)
    return Geometric(_InType(base, like.dtype), Target(energy), kernel, lambda x: x)


def _chain(kernel: Sampler[Any], energy: EnergyFn, x: Tensor, num_steps: int, draws: Generator) -> Tensor:
    kernel = require_exact(kernel)
    state = kernel.init(energy, x)
    for _ in range(num_steps):
        state, _ = kernel.step(energy, state, kernel.draw(state, draws))
    return state.x
