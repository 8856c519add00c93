"""The one loop over transitions, and the function that most callers want.

`transitions` yields (state, info) after each step; the caller keeps, thins and stops. `run_chain` checks its
input, holds the energy still and returns the last positions. Step k draws from the address (seed, "chain",
k), so a run of 50 steps followed by one of 50 with `start=50` equals a run of 100, for every kernel whose
state follows from its positions.
"""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.errors import kind_of
from thalweg.core.rng import generator as address
from thalweg.energy.base import EnergyFn, energy_and_grad
from thalweg.energy.compiled import How, fastest
from thalweg.energy.fused import held
from thalweg.sampler.base import Info, Sampler
from thalweg.sampler.captured import replayed
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

    ValueError for an energy that does not give one number a row, or whose numbers do not depend on x.
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
    compile: How = False,
) -> Float[Tensor, "b *d"]:
    """x after `num_steps` steps, detached, of x's type; x itself is left alone.

    `energy` is any module or callable, (B, *) to (B,). A module is held in evaluation mode with its normalised
    weights computed once, and evaluated as fast as its layers allow (`energy.fused`). `precision="bf16"` evaluates
    the network under bfloat16 autocast; positions, noise, updates and the Metropolis test's energies stay in x's own
    type. `compile="auto"` tries `torch.compile` where the chain is long enough to repay it, and keeps it where it is
    faster (`energy.compiled`); True takes it wherever it works; on a GPU either captures the step as a CUDA graph
    (`sampler.captured`). Compiled chains differ by rounding. `start` is the first step's number, to go on with a run.

    The network may be anywhere in the energy: in an object, a closure, a global name (`energy.reach.modules_of`). It is
    left bit for bit as it was, also after an error. Chains of several threads on one network take turns.

    ValueError for what is no sampler or no energy, for x that is not floating, not finite or has no batch dimension,
    and for an energy of another shape, without a gradient, or not finite where the chains start. Later steps are not
    looked at: a chain that leaves the finite comes back as it is, so look at what is returned.
    """
    num_steps, start = _check_count("num_steps", num_steps), _check_count("start", start)
    _check_positions(x)
    _check_parts(sampler, energy)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: want one of {', '.join(PRECISIONS)}")
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f'compile={compile!r}: want True, False or "auto"')
    exact = reads_energies(sampler)
    generators = (address(seed, "chain", start + k, device=x.device) for k in range(num_steps))
    x, bf16, on_cpu = x.detach(), precision == "bf16", _on_cpu(x)

    def gradient(energy: EnergyFn) -> None:
        with at_precision(_Checked(energy), sampler, x, bf16) as precise:
            energy_and_grad(precise, x)
            if not on_cpu:
                torch.accelerator.synchronize()

    how = False if getattr(sampler, "noisy", False) or not num_steps else compile
    steps: Callable[..., Iterator[Any]] = replayed if compile and not on_cpu else _states
    with torch.inference_mode(False):
        x = x.clone()
        with (
            fastest(energy, x, how, num_steps, gradient, bf16, exact) if how else held(energy) as still,
            at_precision(_Checked(still, first=True), sampler, x, bf16) as precise,
        ):
            for state in steps(sampler, precise, x, generators):
                x = state.x
            return x.clone() if steps is replayed else x


def _states(sampler: Sampler[Any], energy: EnergyFn, x: Tensor, generators: Iterable[Generator]) -> Iterator[Any]:
    """The states alone."""
    return (state for state, _ in transitions(sampler, energy, x, generators))


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


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
class _Checked:
    """The energy E(x) or U(x, t), its result of x's type and checked to be one number a row that depends on x.

    `first`: the next call is the chains' start, where the numbers must be finite; that one look waits for the device.
    """

    energy: Callable[..., Tensor]
    first: bool = False

    def without_layout(self, error: RuntimeError) -> bool:
        """The held energy's own (`energy.fused.Held`): whether to ask once more after this error of a gradient."""
        again = getattr(self.energy, "without_layout", None)
        return again is not None and again(error)

    @property
    def conditionals(self) -> Any:
        """The energy's own, or None: for kernels that draw from its conditional laws."""
        return getattr(self.energy, "conditionals", None)

    def value_and_grad(self, x: Tensor, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        """The energy's own, once a call has been checked."""
        own = None if self.first else getattr(self.energy, "value_and_grad", None)
        return None if own is None else own(x, *t)

    def __call__(self, x: Tensor, *t: Tensor) -> Tensor:
        u = self.energy(x, *t)
        if not isinstance(u, Tensor):
            raise ValueError(f"the energy returned {kind_of(u)}, want a torch tensor ({len(x)},)")
        if u.shape != x.shape[:1]:
            found = tuple(u.shape)
            raise ValueError(f"the energy returned shape {found}, want ({len(x)},): one number for each row")
        if x.requires_grad and not u.requires_grad:
            raise ValueError("the energy has no gradient in x: compute it from x by torch, without detach or no_grad")
        if self.first:
            self.first, bad = False, int((~u.isfinite()).sum())
            if bad:
                raise ValueError(f"the energy is not finite at the start of {bad} of {len(x)} chains: start elsewhere")
        return u.to(x.dtype)


def _check_count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if count < 0:
        raise ValueError(f"{name}={value!r}: want a whole number, zero or more")
    return count


def _check_parts(sampler: Any, energy: Any) -> None:
    missing = [name for name in ("init", "draw", "step") if not callable(getattr(sampler, name, None))]
    if isinstance(sampler, type) or missing:
        like = "thalweg.sampler.langevin.ULA(step_size=0.01)"
        raise ValueError(f"sampler is {kind_of(sampler)}, want a sampler such as {like}")
    if isinstance(energy, type) or not callable(energy):
        raise ValueError(f"energy is {kind_of(energy)}, want a module or function that takes x (B, ...) and gives (B,)")


def _check_positions(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2:
        found = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else kind_of(x)
        raise ValueError(f"x is {found}, want a tensor (B, ...) with a batch dimension first")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x has type {x.dtype}, want float32 or float64; bf16 is a precision of the network")
    if not bool(x.isfinite().all()):
        raise ValueError(f"x has {int((~x.isfinite()).sum())} non-finite values: start from finite positions")
