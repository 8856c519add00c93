"""Chains: the loop over the steps of a sampler.

`transitions` yields (state, info) after each step. `run_chain` checks its input, freezes the energy and returns the
last positions. Step k draws from the address (seed, "chain", k): a run of 50 steps followed by one of 50 with
`start=50` equals a run of 100, for every sampler whose state follows from its positions and the number of the step.
"""

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.check import one_of, whole
from thalweg.core.device import autocast
from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator as address
from thalweg.energy.base import AnyEnergy, Bipartite, Discrete, EnergyFn, HasGradient, HasNoiseLevels
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.wrappers import EnergyWrapper
from thalweg.sampler.base import HasStepNumber, Info, Sampler
from thalweg.sampler.precision import AtPrecision, faster_in_bf16, reads_energies

S = TypeVar("S")
PRECISIONS = ("fp32", "bf16", "auto")


def transitions(
    sampler: Sampler[S],
    energy: EnergyFn,
    x: Float[Tensor, "b *d"],
    generator: Generator | Iterable[Generator],
    start: int = 0,
) -> Iterator[tuple[S, Info]]:
    """(state, info) after each step: without end from one generator, or one step for each of several.

    `start`: the number of the first step, for schedules (`sampler.schedule`) and annealed samplers.
    UserError for an energy that does not give one number a row, or whose numbers do not depend on x.
    """
    energy = energy if isinstance(energy, _Checked | AtPrecision) else _Checked(energy)
    generators = itertools.repeat(generator) if isinstance(generator, Generator) else generator
    state = _numbered(sampler.init(energy, x), start)
    for each in generators:
        state, info = sampler.step(energy, state, sampler.draw(state, each))
        yield state, info


def run_chain(
    sampler: Sampler[S],
    energy: EnergyFn,
    x: Float[Tensor, "b *d"],
    *,
    num_steps: int,
    seed: int = 0,
    start: int = 0,
    precision: str = "fp32",
    compile: bool = False,
) -> Float[Tensor, "b *d"]:
    """Positions after `num_steps` steps, detached, in the type of x; x itself is not changed.

    The modules of the energy (`energy.engine.discovery.find_modules`) are in evaluation mode and evaluated as fast as
    their layers allow (`energy.engine.fused`). They are restored bit for bit, also after an error. Chains of several
    threads on one network run one after the other.

    UserError: no sampler, no energy, x not floating, not finite or without a batch dimension, an energy of another
    shape, without a gradient, or not finite where the chains start. Later steps are not checked: the result may be
    non-finite.

    Args:
        sampler: The sampler.
        energy: Any module or callable, (B, *) to (B,).
        x: Where the chains start.
        num_steps: Number of steps.
        seed: Seed of all draws.
        start: Number of the first step, to continue a run. A schedule of the sampler goes on there too.
        precision: "fp32", "bf16" for the network under bfloat16 autocast (`sampler.precision`), or "auto" for the
            faster of the two. That is measured before the first step, by 7 steps in each, and then kept for this
            network in this process (`sampler.precision.faster_in_bf16`). Another process may choose otherwise: state it
            where bits matter.
        compile: Evaluate the energy by `torch.compile`, which differs by rounding, takes seconds for its first call and
            is rarely faster (docs/experiments/claims.md).
    """
    num_steps, start = whole("num_steps", num_steps, 0), whole("start", start, 0)
    seed = whole("seed", seed, 0, 2**64 - 1)
    one_of(PRECISIONS, precision=precision)
    _check_positions(x)
    _check_parts(sampler, energy)
    if not isinstance(compile, bool):
        raise UserError("must be True or False", argument="compile", value=compile)
    generators = (address(seed, "chain", start + k, device=x.device) for k in range(num_steps))
    with torch.inference_mode(False):
        x = x.detach().clone()
        with (
            _compiled(energy) if compile else FrozenEnergy.of(energy) as frozen_energy,
            autocast(x.device, False),
        ):
            fresh = functools.partial(_Checked, frozen_energy, first=True)
            auto = precision == "auto" and num_steps > 0
            bf16 = faster_in_bf16(sampler, fresh(), x, energy) if auto else precision == "bf16"
            precise = AtPrecision(fresh(), bf16, reads_energies(sampler))
            for state, _ in transitions(sampler, precise, x, generators, start):
                x = state.x  # pyright: ignore[reportAttributeAccessIssue]
    return x


def _numbered(state: Any, start: int) -> Any:
    """The state of a chain whose next step has the number `start`."""
    return state._replace(i=state.i + start) if start and isinstance(state, HasStepNumber) else state


@contextmanager
def checked_energy(sampler: object, energy: EnergyFn, x: Tensor) -> Iterator[EnergyFn]:
    """The energy as `run_chain` evaluates it in full precision, after its checks; for a loop of one's own from x."""
    _check_positions(x)
    _check_parts(sampler, energy)
    with torch.inference_mode(False), FrozenEnergy.of(energy) as frozen_energy, autocast(x.device, False):
        yield _Checked(frozen_energy, first=True)


@contextmanager
def _compiled(energy: AnyEnergy) -> Iterator[EnergyFn]:
    """The energy `frozen`, its value compiled at the first call; dE/dx is taken of that by autograd."""

    def value(*args: Tensor) -> Tensor:  # torch.compile would leave a mark on a module itself
        return energy(*args)

    with frozen(energy):
        yield torch.compile(value)


def of_block(sampler: Sampler[S], size: int) -> Sampler[S]:
    """The sampler for the first rows of a block of `size`, with the noise that they have in the whole block."""
    return _OfBlock(sampler, size)


@dataclass(frozen=True)
class SamplerWrapper(ABC):
    """Abstract: a sampler whose steps are another's, its `sampler`, with noise drawn in a way of its own."""

    sampler: Sampler[Any]

    @property
    def gradient_only(self) -> bool:
        """As the sampler is."""
        return not reads_energies(self.sampler)

    def init(self, energy: EnergyFn, x: Tensor) -> Any:
        """The sampler's state at x."""
        return self.sampler.init(energy, x)

    @abstractmethod
    def draw(self, state: Any, generator: Generator) -> tuple[Tensor, ...]:
        """The noise of one step, in the form of the sampler's own."""

    def step(self, energy: EnergyFn, state: Any, noise: tuple[Tensor, ...]) -> tuple[Any, Info]:
        """The sampler's step."""
        return self.sampler.step(energy, state, noise)


@dataclass(frozen=True)
class _OfBlock(SamplerWrapper):
    """Draws noise for all rows of the block, and computes steps for the rows there are."""

    size: int

    def draw(self, state: Any, generator: Generator) -> tuple[Tensor, ...]:
        rows = len(state.x)
        whole = state._replace(x=state.x[:1].expand(self.size, *state.x.shape[1:]))
        noise = self.sampler.draw(whole, generator)
        return tuple(z[:rows] if z.ndim and len(z) == self.size else z for z in noise)


@dataclass
class _Checked(EnergyWrapper):
    """The energy E(x) or U(x, t), its result checked to be one number a row that depends on x, in x's type.

    `first`: the next call is the chains' start, where the numbers must be finite; that check synchronises the device.
    """

    energy: AnyEnergy
    first: bool = False

    keeps = (Bipartite, Discrete, HasNoiseLevels)

    def __post_init__(self):
        self._gradient = self.energy.value_and_grad if isinstance(self.energy, HasGradient) else None

    def value_and_grad(self, x: Tensor, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        """The energy's own, once a call has been checked."""
        return None if self.first or self._gradient is None else self._gradient(x, *t)

    def __call__(self, x: Tensor, *t: Tensor) -> Tensor:
        u = self.energy(x, *t)
        if not isinstance(u, Tensor):
            raise _fault(f"must give a torch tensor ({len(x)},), not {kind_of(u)}")
        if u.shape != x.shape[:1]:
            raise _fault(f"must give one number for each row, ({len(x)},), not {tuple(u.shape)}")
        if x.requires_grad and not u.requires_grad:
            raise _fault("must have a gradient in x", "compute it from x by torch, without detach or no_grad")
        if self.first:
            self.first, bad = False, int((~u.isfinite()).sum())
            if bad:
                raise _fault(f"must be finite where chains start; it is not for {bad} of {len(x)}", "start elsewhere")
        return u.to(x.dtype)


def _fault(condition: str, hint: str | None = None) -> UserError:
    return UserError(condition, argument="energy", hint=hint)


def _check_parts(sampler: object, energy: object) -> None:
    if isinstance(sampler, type) or not isinstance(sampler, Sampler):
        hint = "such as thalweg.sampler.langevin.ULA(step_size=0.01)"
        raise UserError(f"must be a sampler; it is {kind_of(sampler)}", argument="sampler", hint=hint)
    if isinstance(energy, type) or not callable(energy):
        hint = "a module or function that takes x (B, ...) and gives (B,)"
        raise UserError(f"must be an energy; it is {kind_of(energy)}", argument="energy", hint=hint)


def _check_positions(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2:
        found = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else kind_of(x)
        raise UserError(f"must be a tensor (B, ...) with a batch dimension first, not {found}", argument="x")
    if x.dtype not in (torch.float32, torch.float64):
        hint = "bf16 is a precision of the network"
        raise UserError(f"must be float32 or float64, not {x.dtype}", argument="x", hint=hint)
    if not bool(x.isfinite().all()):
        raise UserError(f"must be finite; {int((~x.isfinite()).sum())} numbers are not", argument="x")
