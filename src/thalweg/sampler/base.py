"""The contract of a sampler: hyper-parameters frozen, tensors in the state, random draws outside the step.

A sampler is a frozen, keyword-only dataclass. `init` makes the state from positions. `draw` alone uses randomness, and
returns the tensors that one step consumes. `step` is a pure function of (energy, state, noise), without `.item()` and
without a branch on a tensor's value: so it compiles whole and resumes exactly.

A new sampler is one new file with these three methods. The contract suite (tests/contract/test_samplers.py) takes every
public class that has `step`, built by a classmethod `example()` or from its defaults. Optional capabilities of a
sampler are the Protocols below; callers ask by `isinstance`.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import (
    AnyEnergy,
    Capability,
    EnergyFn,
    NoiseConditional,
    lacking,
    require_noise_conditional,
)
from thalweg.sampler.schedule import Value

S = TypeVar("S")


class Info(NamedTuple):
    """For diagnostics, (B,) each: the acceptance probability (1 where unadjusted) and the gradient's norm."""

    acceptance: Tensor
    grad_norm: Tensor


@runtime_checkable
class Sampler(Protocol[S], metaclass=Capability):
    """One Markov kernel (or one step of an annealed scheme). `state.x` holds the positions, (B, *)."""

    def init(self, energy: EnergyFn, x: Tensor) -> S:
        """The state at positions x."""
        ...

    def draw(self, state: S, generator: Generator) -> tuple[Tensor, ...]:
        """The randomness that one step consumes."""
        ...

    def step(self, energy: EnergyFn, state: S, noise: tuple[Tensor, ...]) -> tuple[S, Info]:
        """The next state, and what diagnostics need; pure."""
        ...


@runtime_checkable
class AnnealedSampler(Sampler[S], Protocol[S], metaclass=Capability):
    """A sampler that goes down the noise levels of an energy U(y, t), from t_max to t_min in `num_steps` steps.

    The levels are the energy's (`energy.base.sigma_range`). An energy with noise levels can be sampled by such a
    sampler only (`require_annealed`).
    """

    @property
    def num_steps(self) -> int:
        """The number of steps, 1 or more."""
        ...

    def sigma(self, energy: AnyEnergy, i: Tensor, like: Tensor) -> Tensor:
        """The noise deviation after i steps, 0-d, in the type of `like`: the energy's highest for 0, then falling."""
        ...


@runtime_checkable
class GradientOnly(Protocol, metaclass=Capability):
    """A sampler that states whether its steps use the energy's gradient alone.

    A chain asks whose network is in bfloat16: where they do, it computes no energies in full precision
    (`sampler.precision`).
    """

    @property
    def gradient_only(self) -> bool:
        """Whether a step uses no energies."""
        ...


@runtime_checkable
class HasClamp(Protocol, metaclass=Capability):
    """A sampler that may clamp positions to a box.

    `ContrastiveDivergence` asks: the share of coordinates on the box's walls is a health signal of the training.
    """

    @property
    def clamp(self) -> tuple[float, float] | None:
        """(low, high), or None for no box."""
        ...


@runtime_checkable
class HasStepNumber(Protocol, metaclass=Capability):
    """The state of a sampler whose steps are numbered, from 0 after `init`. A chain that continues another asks."""

    @property
    def i(self) -> Tensor:
        """The number of the next step, 0-d int64, on the device of x."""
        ...

    def _replace(self, *, i: Tensor) -> Any:
        """The state with another number, as a NamedTuple has it."""
        ...


@runtime_checkable
class HasStepSize(Protocol, metaclass=Capability):
    """A Langevin kernel, one step of which adds noise of variance 2 step_size temperature. In-painting asks."""

    @property
    def step_size(self) -> Value:
        """In squared units of x, positive; a number or a schedule."""
        ...

    @property
    def temperature(self) -> Value | None:
        """In nats, zero or more, a number or a schedule; None: 1. The chain's law is exp(-E / temperature)."""
        ...


@runtime_checkable
class HasChainTemperature(Protocol, metaclass=Capability):
    """A kernel that keeps the law exp(-E / temperature). `ReplicaExchange` asks, as the temperatures are its own."""

    @property
    def temperature(self) -> Value | None:
        """In nats."""
        ...


@runtime_checkable
class Adaptable(Sampler[S], Protocol[S], metaclass=Capability):
    """A dataclass of a kernel whose step size follows from the acceptance that is wanted. `warm_up` asks."""

    @property
    def step_size(self) -> Value:
        """Positive: the larger, the lower the acceptance."""
        ...

    @property
    def target_acceptance(self) -> float:
        """The mean acceptance at which the kernel moves fastest for its cost."""
        ...


def require_annealed(sampler: object) -> AnnealedSampler[Any]:
    """The sampler, if it is annealed; UserError, with what it lacks, if not."""
    if not isinstance(sampler, AnnealedSampler):
        text = f"must be an annealed sampler for a noise-conditional energy; {lacking(sampler, AnnealedSampler)}"
        raise UserError(text, argument="sampler", hint="take thalweg.sampler.multistep:Multistep")
    check.count(num_steps=sampler.num_steps)
    return sampler


def require_match(sampler: object, energy: object) -> None:
    """UserError unless sampler and energy both have noise levels, or neither has."""
    if isinstance(energy, NoiseConditional):
        require_annealed(sampler)
    elif isinstance(sampler, AnnealedSampler):
        require_noise_conditional(energy)


def with_num_steps(sampler: object, num_steps: int) -> AnnealedSampler[Any]:
    """The annealed sampler with another number of steps; UserError for one that is no dataclass with that field."""
    annealed: Any = require_annealed(sampler)
    try:
        return dataclasses.replace(annealed, num_steps=num_steps)
    except TypeError as error:
        found = f"cannot be changed; {type(sampler).__name__} is no dataclass with that field"
        raise UserError(found, argument="num_steps", value=num_steps) from error


def normal_like(x: Tensor, generator: Generator) -> Tensor:
    """Standard normal noise of x's shape, type and device, from the generator."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def row_norm(g: Tensor) -> Tensor:
    """Euclidean norm of each row, (B, *) to (B,)."""
    return torch.linalg.vector_norm(g.flatten(1), dim=1)


def per_row(v: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to (B, 1, ..., 1) so that it broadcasts against `like`."""
    return v.reshape(-1, *([1] * (like.ndim - 1)))
