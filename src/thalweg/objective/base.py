"""The contract of an objective: a loss whose gradient in the parameters trains an energy.

As with samplers: hyper-parameters frozen, tensors in the state, draws outside. `draw` alone uses randomness; `loss`
is a pure function of (energy, state, batch, noise) and returns the next state instead of changing the old one, so a
step that turns out bad is dropped by keeping the old state. Adding an objective is one new file.
"""

from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Generator, Tensor

S = TypeVar("S")


class Batch(NamedTuple):
    """One training batch in model units: positions (B, *), and integer labels (B,) where the data have them."""

    x: Tensor
    labels: Tensor | None = None


class Empty(NamedTuple):
    """The state of an objective that keeps nothing between steps."""


class Objective(Protocol[S]):
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
