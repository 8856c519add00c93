"""Train a joint energy: -log p(x, y) = -log p(y | x) - log p(x), a cross-entropy and a generative term.

The generative term is any other objective on the same network (Grathwohl et al. 2020): dual score matching for an
energy with noise levels, conditional contrastive divergence for one without. Cross-entropy alone does not determine
E(x) = -log sum_y exp f(x)[y]; the generative term alone does not determine the classes.

Where there are noise levels the cross-entropy is taken at noisy data too, so that grad log p(y | x, t) points to a
class at every level. Part of the rows are replaced by adversarial examples (Madry et al. 2018), made by one signed
gradient step from a random start (Goodfellow et al. 2015; Wong et al. 2020). They keep the gradient of log p(y | x)
small in directions in which the data do not vary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import AnyEnergy, Classifier, lacking
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.objective.base import (
    LABELS,
    Batch,
    HasLevels,
    Objective,
    after_collapses,
    after_rollbacks,
    keeps_chains,
    rows_for,
    start_law_of,
)
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.sampler.base import normal_like, per_row

STRIDE = 1.25  # of the radius: long enough to reach the ball's border from most starts (Wong et al. 2020)


@dataclass(frozen=True, kw_only=True)
class JointLikelihood:
    """mean -log p(y | x') + noisy_weight mean -log p(y | x + sqrt(t) eps, t) + weight · the generative loss.

    The energy is a `Classifier`. x' are the data, a share of them replaced by adversarial examples. Costs the
    generative term and a classifier's step on twice the batch; a term of weight 0 costs nothing. UserError for labels
    that are missing, not whole, or outside 0 … K - 1.

    Args:
        generative: The objective of E(x); with noise levels, its `levels` are those of the noisy term too.
        weight: Weight of the generative loss.
        noisy_weight: Weight of the cross-entropy at noisy data.
        radius: Largest change of a coordinate of an adversarial example, in model units; 0: none are made.
        worst: Share of the rows that are replaced by adversarial examples.
        rows: Rows of the batch in the generative and the noisy term; None: all.
        low: Least value of a coordinate of an adversarial example.
        high: Largest value.
    """

    generative: Objective[Any] = field(default_factory=DualScoreMatching)
    weight: float = 1.0
    noisy_weight: float = 1.0
    radius: float = 0.0
    worst: float = 0.5
    rows: int | None = None
    low: float = 0.0
    high: float = 1.0
    labelled = True

    def __post_init__(self):
        check.non_negative(weight=self.weight, noisy_weight=self.noisy_weight, radius=self.radius)
        check.share(worst=self.worst)
        if self.rows is not None:
            check.count(rows=self.rows)
        if not self.low < self.high:  # infinite ends are no bounds
            raise UserError(f"must be below high={self.high}", argument="low", value=self.low)
        if not isinstance(self.generative, Objective):
            hint = "write a spec such as {type: thalweg.objective.score.dual:DualScoreMatching}"
            raise UserError("must be an objective", argument="generative", value=self.generative, hint=hint)

    @property
    def normalises(self) -> bool:
        """As the generative term does, where it has a weight."""
        return self.generative.normalises and self.weight > 0

    @property
    def noisy(self) -> bool:
        """As the generative term is."""
        return self.generative.noisy

    @classmethod
    def example(cls) -> "JointLikelihood":
        """A small instance, for the contract suite."""
        return cls(radius=0.1, rows=8)

    def after_rollback(self, times: int) -> "JointLikelihood":
        """With the generative term's own variant."""
        own = after_rollbacks(self.generative, times)
        return self if own is self.generative else replace(self, generative=own)

    def after_collapse(self, times: int) -> "JointLikelihood":
        """With the generative term's own variant."""
        own = after_collapses(self.generative, times)
        return self if own is self.generative else replace(self, generative=own)

    @property
    def persistent(self) -> bool:
        """As the generative term is."""
        return keeps_chains(self.generative)

    def persistent_chains(self, state: Any) -> Tensor:
        """Those of the generative term."""
        assert keeps_chains(self.generative)
        return self.generative.persistent_chains(state)

    def init(self, energy: AnyEnergy, x: Float[Tensor, "b *d"], generator: Generator) -> Any:
        """The generative term's state, from as many rows as it will see."""
        return self.generative.init(energy, x if self.init_rows > 1 else x[: self.rows], generator)

    @property
    def init_rows(self) -> int:
        """As many as the generative term asks for."""
        return rows_for(self.generative)

    def start_law(self, state: Any, shape: Sequence[int]) -> MixtureOfFactorAnalyzers | None:
        """The generative term's."""
        return start_law_of(self.generative, state, shape)

    def draw(self, state: Any, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(starts (W, *) of the worst rows, t (B,), eps (B, *), and the generative term's own draws)."""
        some = _first(batch, self.rows)
        num = round(self.worst * len(batch.x)) if self.radius else 0
        shape = batch.x[:num].shape
        starts = torch.rand(shape, generator=generator, dtype=batch.x.dtype, device=generator.device)
        starts = 2 * starts.to(batch.x) - 1
        t, eps = batch.x.new_zeros(0), batch.x.new_zeros(0)
        if isinstance(self.generative, HasLevels):
            t = self.generative.levels.draw(len(some.x), generator, state).to(batch.x)
            eps = normal_like(some.x, generator)
        return starts, t, eps, *self.generative.draw(state, some, generator, progress)

    def loss(
        self, energy: AnyEnergy, state: Any, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Any, dict[str, Tensor]]:
        """The loss in nats (the generative term in its own units), that term's next state, and the parts."""
        starts, t, eps, *own = noise
        if not isinstance(energy, Classifier):
            raise UserError(f"must have classes; {lacking(energy, Classifier)}", argument="energy")
        labels, some = checked_labels(batch, energy.num_classes), _first(batch, self.rows)
        x = batch.x if len(starts) == 0 else self._worst(energy, batch.x, labels, starts)
        scores = energy.logits(x)
        entropy = F.cross_entropy(scores, labels)
        metrics = {"accuracy": (scores.detach().argmax(1) == labels).float().mean(), "cross_entropy": entropy.detach()}
        loss, parts = entropy, {}
        if self.weight:
            loss, state, parts = self.generative.loss(energy, state, some, tuple(own))
            loss = entropy + self.weight * loss
        if len(t) and self.noisy_weight:
            y = some.x + per_row(t.sqrt(), eps) * eps
            noisy = F.cross_entropy(energy.logits(y, t), labels[: len(y)])
            loss, metrics = loss + self.noisy_weight * noisy, metrics | {"noisy_entropy": noisy.detach()}
        return loss, state, parts | metrics

    def _worst(self, energy: Classifier, x: Tensor, labels: Tensor, starts: Tensor) -> Tensor:
        """The batch, its last rows replaced by adversarial examples, which have a higher cross-entropy."""
        kept, moved = x[: len(x) - len(starts)], x[len(x) - len(starts) :]
        with torch.enable_grad():
            begun = (moved + self.radius * starts).clamp(self.low, self.high).detach().requires_grad_(True)
            surprise = F.cross_entropy(energy.logits(begun), labels[len(kept) :], reduction="sum")
            (g,) = torch.autograd.grad(surprise, begun)
        change = (begun.detach() - moved + STRIDE * self.radius * g.sign()).clamp(-self.radius, self.radius)
        return torch.cat([kept, (moved + change).clamp(self.low, self.high)]).detach()


def checked_labels(batch: Batch, num_classes: int) -> Int[Tensor, " b"]:
    """The batch's labels; UserError where they are missing, not whole numbers, or outside 0 … num_classes - 1.

    The last is looked at on the CPU only: elsewhere the host would wait for the device at each step.
    """
    labels = batch.labels
    if labels is None:
        raise UserError("must be given for a joint energy", argument="labels", hint=LABELS)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != batch.x.shape[:1]:
        condition = f"must be one whole number a row; they are {labels.dtype} of shape {tuple(labels.shape)}"
        raise UserError(condition, argument="labels")
    if labels.device.type != "cpu":  # a run has looked at all labels before it began
        return labels
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= num_classes:
        condition = f"must be 0 to {num_classes - 1}; they are {low} to {high}"
        raise UserError(condition, argument="labels", hint="number the classes from 0, or raise energy.num_classes")
    return labels


def _first(batch: Batch, rows: int | None) -> Batch:
    return batch if rows is None else Batch(batch.x[:rows], None if batch.labels is None else batch.labels[:rows])
