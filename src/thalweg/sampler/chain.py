"""The one loop over transitions, and the function that most callers want.

`transitions` yields (state, info) after each step; the caller keeps, thins and stops. `run_chain` checks its
input, freezes the energy and returns the last positions. Step k draws from the address (seed, "chain",
k), so a run of 50 steps followed by one of 50 with `start=50` equals a run of 100, for every kernel whose
state follows from its positions.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.check import one_of, whole
from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator as address
from thalweg.energy.base import Bipartite, EnergyFn, HasGradient, HasNoiseLevels
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.wrappers import EnergyWrapper
from thalweg.sampler.base import Info, Sampler
from thalweg.sampler.precision import AtPrecision, at_precision, reads_energies

S = TypeVar("S")
PRECISIONS = ("fp32", "bf16")


def transitions(
    sampler: Sampler[S],
    energy: EnergyFn,
    x: Float[Tensor, "b *d"],
    generator: Generator | Iterable[Generator],
) -> Iterator[tuple[S, Info]]:
    """(state, info) after each step: without end from one generator, or one step for each of several.

    UserError for an energy that does not give one number a row, or whose numbers do not depend on x.
    """
    energy = energy if isinstance(energy, _Checked | AtPrecision) else _Checked(energy)
    generators = itertools.repeat(generator) if isinstance(generator, Generator) else generator
    state = sampler.init(energy, x)
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
    """x after `num_steps` steps, detached, of x's type; x itself is left alone.

    `energy` is any module or callable, (B, *) to (B,). A module is evaluated in evaluation mode, its normalised weights
    computed once, and evaluated as fast as its layers allow (`energy.engine.fused`). `precision="bf16"` evaluates the
    network under bfloat16 autocast; positions, noise, updates and the Metropolis test's energies stay in x's own type.
    `compile=True` evaluates the energy by `torch.compile` instead, which differs by rounding. That needs a compiler,
    takes seconds for its first call and is rarely faster (docs/experiments/claims.md). `start` is the first step's
    number, to go on with a run.

    The network may be anywhere in the energy: in an object, a closure, a partial
    (`energy.engine.discovery.find_modules`). It is left bit for bit as it was, also after an error. Chains of several
    threads on one network take turns.

    UserError for what is no sampler or no energy, for x that is not floating, not finite or has no batch dimension,
    and for an energy of another shape, without a gradient, or not finite where the chains start. Later steps are not
    looked at: a chain that leaves the finite comes back as it is, so look at what is returned.
    """
    num_steps, start = whole("num_steps", num_steps, 0), whole("start", start, 0)
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
            at_precision(_Checked(frozen_energy, first=True), sampler, x, precision == "bf16") as precise,
        ):
            for state, _ in transitions(sampler, precise, x, generators):
                x = state.x  # pyright: ignore[reportAttributeAccessIssue]
    return x


@contextmanager
def _compiled(energy: Any) -> Iterator[EnergyFn]:
    """The energy `frozen`, its value compiled at the first call; dE/dx is taken of that by autograd."""

    def value(*args: Tensor) -> Tensor:  # torch.compile would leave a mark on a module itself
        return energy(*args)

    with frozen(energy):
        yield torch.compile(value)


def of_block(sampler: Sampler[S], size: int) -> Sampler[S]:
    """The sampler for the first rows of a block of `size`: they get the noise that they have in the whole block."""
    return _OfBlock(sampler, size)


@dataclass(frozen=True)
class _OfBlock:
    """Noise is drawn for all of the block's rows, which costs little, and steps are computed for those there are."""

    sampler: Any
    size: int

    @property
    def gradient_only(self) -> bool:
        return not reads_energies(self.sampler)

    def init(self, energy: EnergyFn, x: Tensor) -> Any:
        return self.sampler.init(energy, x)

    def draw(self, state: Any, generator: Generator) -> tuple[Tensor, ...]:
        rows = len(state.x)
        whole = state._replace(x=state.x[:1].expand(self.size, *state.x.shape[1:]))
        noise = self.sampler.draw(whole, generator)
        return tuple(z[:rows] if z.ndim and len(z) == self.size else z for z in noise)

    def step(self, energy: EnergyFn, state: Any, noise: tuple[Tensor, ...]) -> Any:
        return self.sampler.step(energy, state, noise)


@dataclass
class _Checked(EnergyWrapper):
    """The energy E(x) or U(x, t), its result of x's type and checked to be one number a row that depends on x.

    `first`: the next call is the chains' start, where the numbers must be finite; that one look waits for the device.
    """

    energy: Callable[..., Tensor]
    first: bool = False

    keeps = (Bipartite, HasNoiseLevels)

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


def _check_parts(sampler: Any, energy: Any) -> None:
    missing = [name for name in ("init", "draw", "step") if not callable(getattr(sampler, name, None))]
    if isinstance(sampler, type) or missing:
        hint = "such as thalweg.sampler.langevin.ULA(step_size=0.01)"
        raise UserError(f"must be a sampler, not {kind_of(sampler)}", argument="sampler", hint=hint)
    if isinstance(energy, type) or not callable(energy):
        hint = "a module or function that takes x (B, ...) and gives (B,)"
        raise UserError(f"must be an energy, not {kind_of(energy)}", argument="energy", hint=hint)


def _check_positions(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2:
        found = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else kind_of(x)
        raise UserError(f"must be a tensor (B, ...) with a batch dimension first, not {found}", argument="x")
    if x.dtype not in (torch.float32, torch.float64):
        hint = "bf16 is a precision of the network"
        raise UserError(f"must be float32 or float64, not {x.dtype}", argument="x", hint=hint)
    if not bool(x.isfinite().all()):
        raise UserError(f"must be finite; {int((~x.isfinite()).sum())} numbers are not", argument="x")
