"""Maximum likelihood of the conditional law p(y | x) = exp(-E(x, y)) / Z(x), no chains needed.

Which loss depends on y, which the energy states (`energy.outcomes.Conditional`; of a `Classifier` the labels are y):

- it can be counted: the likelihood itself, with Z(x) summed over all y;
- binary vectors beyond that: the pseudo-likelihood -sum_k log p(y_k | y without k, x) (Besag 1975), of K + 1 energies;
- continuous: -log of the share that exp(-E(x, y)) / q(y | x) takes at the observed y among M candidates from q (ranking
  noise-contrastive estimation). Its minimum is p(y | x) for every M, and E's constant may depend on x (Ma & Collins
  2018). q is the energy's own linear Gaussian law of y, at several scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import AnyEnergy, Classifier, lacking
from thalweg.energy.outcomes import Conditional, Continuous, gaussian_of, log_mixture, surprise
from thalweg.objective.base import Batch, Empty
from thalweg.objective.joint import checked_labels
from thalweg.objective.pseudo_likelihood import all_units_turned
from thalweg.sampler.base import normal_like


class TargetShape(NamedTuple):
    """The state for a continuous y: `like` (1, K), zeros whose shape says how many numbers it has."""

    like: Tensor


@dataclass(frozen=True, kw_only=True)
class ConditionalLikelihood:
    """mean -log p(y | x) in nats, or what stands for it where y cannot be counted (see the module).

    Args:
        num_candidates: M, draws from q a row, for a continuous y.
        scales: q is an equal mixture of the energy's Gaussian law of y at so many times its deviation.
    """

    num_candidates: int = 64
    scales: Sequence[float] = (0.5, 1.0, 2.0, 4.0)

    normalises = False  # E(x, y) keeps an unknown constant, which may depend on x; p(y | x) has none
    noisy = False

    def __post_init__(self):
        check.count(num_candidates=self.num_candidates)
        if not self.scales:
            raise UserError("must be one or more", argument="scales")
        for i, scale in enumerate(self.scales):
            check.positive(**{f"scales[{i}]": scale})

    def init(self, energy: AnyEnergy, x: Tensor, generator: Generator) -> Empty | TargetShape:
        """What tells `draw` how many numbers y has, where it is continuous."""
        if isinstance(energy, Conditional) and isinstance(energy.outcomes, Continuous):
            return TargetShape(x.new_zeros(1, energy.outcomes.num))
        return Empty()

    def draw(
        self, state: Empty | TargetShape, batch: Batch, generator: Generator, progress: float
    ) -> tuple[Tensor, ...]:
        """(eps (M, B, K), which scale (M, B)) for a continuous y; else nothing."""
        if not isinstance(state, TargetShape):
            return ()
        shape = (self.num_candidates, len(batch.x))
        eps = normal_like(state.like.expand(*shape, -1), generator)
        which = torch.randint(0, len(self.scales), shape, generator=generator, device=generator.device)
        return eps, which.to(batch.x.device)

    def loss(
        self, energy: AnyEnergy, state: Empty | TargetShape, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty | TargetShape, dict[str, Tensor]]:
        """The mean over the rows."""
        if not isinstance(energy, Conditional):
            if not isinstance(energy, Classifier):
                text = f"must be a law of y given x, or have classes; {lacking(energy, Conditional)}"
                raise UserError(text, argument="energy")
            loss = F.cross_entropy(energy.logits(batch.x), checked_labels(batch, energy.num_classes))
            return loss, state, {"surprise": loss.detach()}
        x, y = energy.split(batch.x)
        if isinstance(energy.outcomes, Continuous):
            name, loss = "rank_surprise", self._rank_surprise(energy, energy.outcomes, x, y, *noise)
        elif energy.outcomes.enumerable:
            name, loss = "surprise", surprise(energy.joint, x, y, energy.outcomes)
        else:
            name, loss = "pseudo_surprise", _pseudo_surprise(energy, x, y)
        return loss.mean(), state, {name: loss.detach().mean()}

    def _rank_surprise(
        self, energy: Conditional, outcomes: Continuous, x: Tensor, y: Tensor, eps: Tensor, which: Tensor
    ) -> Float[Tensor, " b"]:
        """-log softmax of log exp(-E) / q at the observed y, the first of 1 + M candidates."""
        law = gaussian_of(energy, x, outcomes)
        scales = torch.tensor(self.scales, dtype=y.dtype, device=y.device)
        own = torch.linalg.solve_triangular(law.scale, (y - law.mean).T, upper=False).T
        u = torch.cat([own[None], scales[which][..., None] * eps])
        ys = torch.cat([y[None], law.at(u[1:])])
        log_q = log_mixture(u, scales)  # but for the law's determinant, which all candidates of a row share
        energies = energy.joint(x.repeat(len(u), *[1] * (x.ndim - 1)), ys.flatten(0, 1)).view(log_q.shape)
        weights = -energies - log_q
        return torch.logsumexp(weights, 0) - weights[0]


def _pseudo_surprise(energy: Conditional, x: Tensor, y: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-sum_k log p(y_k | y without k, x), (B,) nats."""
    return all_units_turned(lambda ys: energy.joint(x.repeat_interleave(y.shape[1] + 1, 0), ys), y)
