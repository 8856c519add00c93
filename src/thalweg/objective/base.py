"""The contract of an objective: a loss whose gradient in the parameters trains an energy.

As with samplers: hyper-parameters frozen, tensors in the state, draws outside. `draw` alone uses randomness; `loss`
is a pure function of (energy, state, batch, noise) and returns the next state instead of changing the old one, so a
step that turns out bad is dropped by keeping the old state. Adding an objective is one new file.
"""

from dataclasses import fields
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Generator, Tensor

from thalweg.energy.base import Capability
from thalweg.objective.score.noise_levels import NoiseLevels

S = TypeVar("S")


class Batch(NamedTuple):
    """One training batch in model units: positions (B, *), and integer labels (B,) where the data have them."""

    x: Tensor
    labels: Tensor | None = None


class Empty(NamedTuple):
    """The state of an objective that keeps nothing between steps."""


@runtime_checkable
class Objective(Protocol[S], metaclass=Capability):
    """Draw the randomness of one step, then turn (energy, state, batch, noise) into (loss, next state, metrics).

    `normalises` says whether minimising the loss also fixes the energy's additive constant, so that -E is log p.
    `noisy` says whether the energy takes (y, t) instead of x. `progress` in [0, 1) is the share of training done
    (schedules read it in `draw`, where Python branches are allowed). Metrics are detached 0-d tensors.
    """

    normalises: bool
    noisy: bool

    def init(self, energy: Any, x: Tensor, generator: Generator) -> S: ...

    def draw(self, state: S, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]: ...

    def loss(
        self, energy: Any, state: S, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, S, dict[str, Tensor]]: ...


@runtime_checkable
class HasAfterRollback(Protocol, metaclass=Capability):
    """An objective that has a variant of itself for the steps after a rollback (`training.guard`).

    The variant is pure, of the same class, and goes on with the state that there is; `after_rollback(0)` is the
    objective itself. So the number of rollbacks is all that a resumed run needs to know. An objective without goes on
    as it was, with a lower learning rate.
    """

    def after_rollback(self, times: int) -> "Objective[Any]":
        """The variant after `times` rollbacks."""
        ...


@runtime_checkable
class HasLevels(Protocol, metaclass=Capability):
    """An objective over noise levels: `levels` says which of them it draws, its state is the energy's `NoiseRange`.

    Asked for by `JointLikelihood`, whose classifier sees the same levels; without, it sees clean data only.
    """

    @property
    def levels(self) -> NoiseLevels:
        """How noise levels are drawn."""
        ...


@runtime_checkable
class Labelled(Protocol, metaclass=Capability):
    """An objective that learns the classes of `batch.labels`, where `labelled` is true.

    A run then wants labelled data and an energy with `num_classes` and `logits`, and refuses others before any work.
    """

    @property
    def labelled(self) -> bool:
        """Whether labels are classes to be learned."""
        ...


def after_rollbacks(objective: Any, times: int) -> Any:
    """The objective after `times` rollbacks: itself, where it has no variant."""
    return objective.after_rollback(times) if times and isinstance(objective, HasAfterRollback) else objective


def changes(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """The hyper-parameters of an objective that differ in another of its kind, each with its two values."""
    if before is after:
        return {}
    pairs = {field.name: (getattr(before, field.name), getattr(after, field.name)) for field in fields(before)}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}
