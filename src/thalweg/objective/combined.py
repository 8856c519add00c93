"""Several objectives as one: a weighted sum of their losses, for one energy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import AnyEnergy
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.objective.base import (
    Batch,
    LearnsConstant,
    Objective,
    after_collapses,
    after_rollbacks,
    keeps_chains,
    rows_for,
    start_law_of,
)


class CombinedState(NamedTuple):
    """The states of the parts, in order."""

    parts: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Combined:
    """sum_k w_k loss_k: of objectives whose minimum is the same law, the sum's minimum is it too.

    So an objective that leaves the energy's constant unknown may be joined by one that finds it. Costs the sum of the
    parts' costs. The metrics of a part are named `<class>_<metric>`.

    Args:
        parts: The objectives, two or more.
        weights: w, one each; None: 1 each.
    """

    parts: Sequence[Objective[Any]]
    weights: Sequence[float] | None = None

    def __post_init__(self):
        if len(self.parts) < 2 or not all(isinstance(part, Objective) for part in self.parts):
            raise UserError("must be two objectives or more", argument="parts")
        if len({part.noisy for part in self.parts}) > 1:
            raise UserError("must all be of E(x), or all of U(y, t)", argument="parts")
        if self.weights is not None:
            if len(self.weights) != len(self.parts):
                raise UserError("must be one for each of the parts", argument="weights", value=self.weights)
            for i, weight in enumerate(self.weights):
                check.positive(**{f"weights[{i}]": weight})
                check.finite(**{f"weights[{i}]": weight})

    @property
    def normalises(self) -> bool:
        """Whether a part does."""
        return any(part.normalises for part in self.parts)

    @property
    def noisy(self) -> bool:
        """As the parts are."""
        return self.parts[0].noisy

    @property
    def learns_constant(self) -> bool:
        """Whether a part does."""
        return any(isinstance(part, LearnsConstant) and part.learns_constant for part in self.parts)

    @classmethod
    def example(cls) -> Self:
        """Two ways to the same law."""
        from thalweg.objective.noise_contrastive import NoiseContrastive
        from thalweg.objective.pseudo_likelihood import PseudoLikelihood

        return cls(parts=(NoiseContrastive(), PseudoLikelihood()), weights=(1.0, 0.5))

    def after_rollback(self, times: int) -> Self:
        """With the parts' own variants."""
        return self._with([after_rollbacks(part, times) for part in self.parts])

    def after_collapse(self, times: int) -> Self:
        """With the parts' own variants."""
        return self._with([after_collapses(part, times) for part in self.parts])

    def _with(self, parts: Sequence[Objective[Any]]) -> Self:
        """The sum of these parts, itself where none is another."""
        same = all(a is b for a, b in zip(parts, self.parts, strict=True))
        return self if same else replace(self, parts=tuple(parts))

    @property
    def persistent(self) -> bool:
        """Whether a part keeps chains."""
        return any(keeps_chains(part) for part in self.parts)

    def persistent_chains(self, state: CombinedState) -> Tensor:
        """Those of the first part that keeps any."""
        pairs = zip(self.parts, state.parts, strict=True)
        return next(part.persistent_chains(own) for part, own in pairs if keeps_chains(part))

    def init(self, energy: AnyEnergy, x: Float[Tensor, "b *d"], generator: Generator) -> CombinedState:
        """The states of the parts."""
        return CombinedState(tuple(part.init(energy, x, generator) for part in self.parts))

    @property
    def init_rows(self) -> int:
        """As many as a part asks for."""
        return max(rows_for(part) for part in self.parts)

    def start_law(self, state: CombinedState, shape: Sequence[int]) -> MixtureOfFactorAnalyzers | None:
        """That of the first part that has one."""
        laws = (start_law_of(part, own, shape) for part, own in zip(self.parts, state.parts, strict=True))
        return next((law for law in laws if law is not None), None)

    def draw(
        self, state: CombinedState, batch: Batch, generator: Generator, progress: float
    ) -> tuple[tuple[Any, ...], ...]:
        """What each part draws, in order."""
        pairs = zip(self.parts, state.parts, strict=True)
        return tuple(part.draw(own, batch, generator, progress) for part, own in pairs)

    def loss(
        self, energy: AnyEnergy, state: CombinedState, batch: Batch, noise: tuple[Any, ...]
    ) -> tuple[Float[Tensor, ""], CombinedState, dict[str, Tensor]]:
        """The weighted sum, in nats where the parts are."""
        total, states, metrics = None, [], {}
        weights = self.weights or [1.0] * len(self.parts)
        for part, weight, own, draws in zip(self.parts, weights, state.parts, noise, strict=True):
            loss, after, found = part.loss(energy, own, batch, draws)
            total = weight * loss if total is None else total + weight * loss
            states.append(after)
            metrics |= {f"{type(part).__name__}_{name}": value for name, value in found.items()}
        assert total is not None
        return total, CombinedState(tuple(states)), metrics
