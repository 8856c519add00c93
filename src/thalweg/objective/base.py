"""The contract of an objective: a loss whose gradient in the parameters trains an energy.

As with samplers: hyper-parameters frozen, tensors in the state, random draws outside. `draw` alone uses randomness.
`loss` is a pure function of (energy, state, batch, noise) and returns the next state, so a bad step is dropped by
keeping the old state. A new objective is one new file.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

from torch import Generator, Tensor

from thalweg.energy.base import AnyEnergy, Capability
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.objective.score.noise_levels import NoiseLevels
from thalweg.sampler.base import Sampler

LABELS = "give labelled data"
S = TypeVar("S")
T = TypeVar("T")


class Batch(NamedTuple):
    """One training batch in model units: positions (B, *), and integer labels (B,) where the data have them."""

    x: Tensor
    labels: Tensor | None = None


class Empty(NamedTuple):
    """The state of an objective without memory between steps."""


class Stateless:
    """Abstract: an objective of E(x) without memory between steps."""

    normalises = False
    noisy = False

    def init(self, energy: AnyEnergy, x: Tensor, generator: Generator) -> Empty:
        """The empty state."""
        return Empty()


@runtime_checkable
class Objective(Protocol[S], metaclass=Capability):
    """A loss of an energy, its state, and the random draws of one step.

    `normalises`: minimising the loss also fixes the energy's additive constant, so that -E is log p. `noisy`: the
    energy is U(y, t). `progress` in [0, 1) is the share of training done; schedules read it in `draw`, where Python
    branches are allowed. Metrics are detached 0-d tensors.
    """

    normalises: bool
    noisy: bool

    def init(self, energy: AnyEnergy, x: Tensor, generator: Generator) -> S: ...

    def draw(self, state: S, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]: ...

    def loss(
        self, energy: AnyEnergy, state: S, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, S, dict[str, Tensor]]: ...


@runtime_checkable
class HasAfterRollback(Protocol, metaclass=Capability):
    """An objective that has a variant of itself for the steps after a rollback (`training.guard`).

    The guard asks. The variant is of the same class and continues with the same state; `after_rollback(0)` is the
    objective itself. Any other objective continues unchanged, at a lower learning rate.
    """

    def after_rollback(self, times: int) -> "Objective[Any]":
        """The variant after `times` rollbacks."""
        ...


@runtime_checkable
class HasAfterCollapse(Protocol, metaclass=Capability):
    """An objective that has a variant of itself for the steps after its samples have lost variety.

    The guard asks (`training.remedy`). The variant is of the same class and continues with the same state;
    `after_collapse(0)` is the objective itself. A training by any other objective is rolled back instead.
    """

    def after_collapse(self, times: int) -> "Objective[Any]":
        """The variant after `times` losses of variety; that of a greater number may be the same."""
        ...


@runtime_checkable
class HasPersistentChains(Protocol, metaclass=Capability):
    """An objective that keeps chains from step to step, where `persistent` is true.

    The monitor of a run asks: it looks at these chains then, and need not draw samples.
    """

    @property
    def persistent(self) -> bool:
        """Whether chains are kept."""
        ...

    def persistent_chains(self, state: Any) -> Tensor:
        """The chains' positions (N, *) in model units, in an order that stays."""
        ...


@runtime_checkable
class ReadsRows(Protocol, metaclass=Capability):
    """An objective whose `init` fits something to the data. A training asks, and gives it `init_rows` rows or more.

    `init` of any other objective gets one batch. Rows come twice where the data are fewer.
    """

    @property
    def init_rows(self) -> int:
        """How many rows; 1 for none beyond a batch."""
        ...


@runtime_checkable
class HasStartLaw(Protocol, metaclass=Capability):
    """An objective whose chains begin at draws of a law that was fitted to the data.

    A run asks: the trained energy's chains begin there too, so the bundle keeps it.
    """

    def start_law(self, state: Any, shape: Sequence[int]) -> MixtureOfFactorAnalyzers | None:
        """The law, of rows of a shape in model units; None where chains begin elsewhere."""
        ...


@runtime_checkable
class HasLevels(Protocol, metaclass=Capability):
    """An objective over noise levels, whose state is the energy's `NoiseRange`.

    `JointLikelihood` asks, to train its classifier at the same levels.
    """

    @property
    def levels(self) -> NoiseLevels:
        """The law of the noise levels drawn."""
        ...


@runtime_checkable
class HasSampler(Protocol, metaclass=Capability):
    """An objective whose chains are a sampler's. `thalweg.train` asks: samples are then drawn by the same one."""

    @property
    def sampler(self) -> Sampler[Any]:
        """The sampler of the chains, in model units."""
        ...


@runtime_checkable
class Labelled(Protocol, metaclass=Capability):
    """An objective that learns the classes of `batch.labels`, where `labelled` is true.

    A run then needs labelled data and an energy that is a `Classifier`.
    """

    @property
    def labelled(self) -> bool:
        """Whether labels are classes to be learned."""
        ...


@runtime_checkable
class LearnsConstant(Protocol, metaclass=Capability):
    """An objective that fixes the additive constant of any energy E(x), where `learns_constant` is true.

    A run asks: a network that is given gets a constant (`energy.with_constant`), and -E is log p.
    """

    @property
    def learns_constant(self) -> bool:
        """Whether the constant is learned."""
        ...


@runtime_checkable
class Compilable(Protocol, metaclass=Capability):
    """An objective whose `loss` torch.compile takes whole, where `compiles` is true. A training with `compile` asks.

    Chains are not: what their energies do inside a chain cannot be traced.
    """

    @property
    def compiles(self) -> bool:
        """Whether the loss may be compiled."""
        ...


def rows_for(objective: object) -> int:
    """How many rows `init` of an objective is to be given; 1 for one batch."""
    return objective.init_rows if isinstance(objective, ReadsRows) else 1


def start_law_of(objective: object, state: Any, shape: Sequence[int]) -> MixtureOfFactorAnalyzers | None:
    """The law that an objective's chains begin at, if that was fitted to the data."""
    return objective.start_law(state, shape) if isinstance(objective, HasStartLaw) else None


def after_rollbacks(objective: T, times: int) -> T:
    """The objective after `times` rollbacks: itself, where it has no variant."""
    if times and isinstance(objective, HasAfterRollback):
        return objective.after_rollback(times)  # pyright: ignore[reportReturnType] - of the same class
    return objective


def after_collapses(objective: T, times: int) -> T:
    """The objective after `times` losses of variety: itself, where it has no variant."""
    if times and isinstance(objective, HasAfterCollapse):
        return objective.after_collapse(times)  # pyright: ignore[reportReturnType] - of the same class
    return objective


def keeps_chains(objective: object) -> TypeGuard[HasPersistentChains]:
    """Whether an objective keeps chains from step to step."""
    return isinstance(objective, HasPersistentChains) and objective.persistent


def changes(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """The hyper-parameters that differ between two objectives of one class, each with its two values."""
    if before is after:
        return {}
    pairs = {field.name: (getattr(before, field.name), getattr(after, field.name)) for field in fields(before)}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}
