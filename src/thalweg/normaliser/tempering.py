"""From a base law to a target by temperature: E_k = (1 - beta_k) E_0 + beta_k E, 0 = beta_0 < … < beta_K = 1.

A target is evaluated once for each position that a kernel proposes: what it gave there is kept until the next level,
whose energy begins with it.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from thalweg.energy.base import EnergyFn, energy_and_grad
from thalweg.sampler.base import Sampler, per_row

KEPT = 8  # evaluations that are kept: more than a kernel's steps at one level


@runtime_checkable
class BaseLaw(Protocol):
    """A law whose constant and draws are exact, such as `energy.analytic.Gaussian`."""

    @property
    def log_z(self) -> Any:
        """log of the integral of exp(-E), in nats: a number or a 0-d tensor."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """E_0(x), (B,) nats."""
        ...

    def draw(self, n: int, generator: Generator, /) -> Tensor:
        """n exact draws (n, *)."""
        ...


class _Given(NamedTuple):
    """What the target gave at x: u (B,), and g (B, *) where it was asked for."""

    x: Tensor
    u: Tensor
    g: Tensor | None


class Target:
    """An energy that remembers its last evaluations."""

    def __init__(self, energy: EnergyFn):
        self.energy = energy
        self.num_evaluations = 0  # of whole batches
        self._given: deque[_Given] = deque(maxlen=KEPT)

    def evaluate(self, x: Tensor, *, gradient: bool) -> _Given:
        """E(x), with its gradient where that is asked for."""
        self.num_evaluations += 1
        if gradient:
            given = _Given(x.detach(), *energy_and_grad(self.energy, x))
        else:
            with torch.no_grad():
                given = _Given(x.detach(), self.energy(x), None)
        self._given.append(given)
        return given

    def recall(self, x: Tensor, *, gradient: bool) -> _Given:
        """The same from memory, if each row was evaluated of late; earlier memories are dropped."""
        missing = torch.ones(len(x), dtype=torch.bool, device=x.device)
        u, g = x.new_empty(len(x)), torch.empty_like(x) if gradient else None
        for given in reversed(self._given):
            if given.x.shape != x.shape or (gradient and given.g is None):
                continue
            same = missing & (given.x == x).flatten(1).all(1)
            u = torch.where(same, given.u.to(u), u)
            g = None if g is None or given.g is None else torch.where(per_row(same, x), given.g, g)
            missing = missing & ~same
            if not bool(missing.any()):
                break
        if bool(missing.any()):
            return self.evaluate(x, gradient=gradient)
        self._given.clear()
        self._given.append(_Given(x.detach(), u, g))
        return self._given[-1]


@dataclass
class Tempered:
    """(1 - beta) E_0(x) + beta E(x), (B,) nats; the target is not asked where beta is 0."""

    base: EnergyFn
    target: Target
    beta: float
    first: bool = field(default=True, init=False)  # the next evaluation is where the level begins

    def __call__(self, x: Tensor) -> Tensor:
        """The energy in nats."""
        if self.beta == 0:
            return self.base(x)
        if x.requires_grad and torch.is_grad_enabled():
            return (1 - self.beta) * self.base(x) + self.beta * self.target.energy(x)
        return self._mixed(self._given(x, gradient=False).u, self.base(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The energy and its gradient in x."""
        if self.beta == 0:
            return None
        given = self._given(x, gradient=True)
        u, g = energy_and_grad(self.base, x)
        return self._mixed(given.u, u), self._mixed(given.g, g)

    def _given(self, x: Tensor, *, gradient: bool) -> _Given:
        first, self.first = self.first, False
        ask = self.target.recall if first else self.target.evaluate
        return ask(x, gradient=gradient)

    def _mixed(self, of_target: Any, of_base: Tensor) -> Tensor:
        if self.beta == 1:
            return of_target
        return (1 - self.beta) * of_base + self.beta * of_target


@dataclass(frozen=True)
class Geometric:
    """Annealing by temperature: exp(-E_beta) is the geometric mean of the base law and the target's.

    Args:
        base: E_0.
        target: E.
        sampler: Its step size, where it has one, is set for each level.
        coordinates: Positions of the target to those that both energies take.
    """

    base: BaseLaw
    target: Target
    sampler: Sampler[Any]
    coordinates: Callable[[Tensor], Tensor]

    @property
    def log_z(self) -> float:
        """That of the base law."""
        return float(self.base.log_z)

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws of the base law."""
        return self.base.draw(n, generator)

    def at(self, beta: float) -> Tempered:
        """E_beta."""
        return Tempered(self.base, self.target, beta)

    def kernel(self, step_size: float) -> Sampler[Any]:
        """The sampler with that step size; as it is where it has none."""
        sampler: Any = self.sampler
        return dataclasses.replace(sampler, step_size=step_size) if has_step_size(sampler) else sampler


class Annealing(Protocol):
    """Energies E_beta from a base law at 0 to the target at 1, in coordinates of its own."""

    def coordinates(self, x: Tensor, /) -> Tensor:
        """Positions x (n, *) of the target in the annealing's coordinates."""
        ...

    @property
    def log_z(self) -> float:
        """log Z at beta = 0."""
        ...

    def draw(self, n: int, generator: Generator, /) -> Tensor:
        """Exact draws at beta = 0."""
        ...

    def at(self, beta: float, /) -> EnergyFn:
        """E_beta."""
        ...

    def kernel(self, step_size: float, /) -> Sampler[Any]:
        """A kernel for any of them."""
        ...


@dataclass(frozen=True)
class AnnealingPath:
    """The path through given betas.

    Args:
        annealing: The energies.
        betas: beta_0 … beta_K, rising from 0 to 1.
        step_sizes: Those of the kernels, 0 … K; the first is not used.
    """

    annealing: Annealing
    betas: Sequence[float]
    step_sizes: Sequence[float]

    @property
    def num_levels(self) -> int:
        """K."""
        return len(self.betas) - 1

    @property
    def log_z(self) -> float:
        """log Z_0."""
        return self.annealing.log_z

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draws of the base law."""
        return self.annealing.draw(n, generator)

    def energy(self, k: int) -> EnergyFn:
        """E_k."""
        return self.annealing.at(self.betas[k])

    def kernel(self, k: int) -> Sampler[Any]:
        """The kernel of level k."""
        return self.annealing.kernel(self.step_sizes[k])


def has_step_size(sampler: object) -> bool:
    """Whether the sampler is a dataclass with the field `step_size`."""
    fields = dataclasses.fields(sampler) if dataclasses.is_dataclass(sampler) else ()
    return any(field.name == "step_size" for field in fields)
