"""Completions of an image in order, best first: by their expected error, or by energy.

The completion of lowest energy is not the best answer: a rare shape may have a sharp peak, and all completions of a
common shape share their probability. The first completion should be near the truth. Given an observation b,

    E[|P(x - truth)|² | b] = |P x - E[P truth | b]|² + constant

is the squared distance to the posterior's mean (the Bayes risk; Kumar & Byrne 2004 choose translations so). P, the
projection on principal components, leaves out what does not tell one shape from another. The mean is the mixture's, in
closed form.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.inpaint.posterior import NETWORK_ROWS, Observation
from thalweg.bundle.bundle import Bundle
from thalweg.core import check
from thalweg.core.rng import generator
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.engine.freeze import frozen

RankBy = Literal["expected_error", "energy"]
RANKED_AT = 0.5  # of several levels tried on training digits, the best at telling right from wrong
IMAGES = 256  # whose posteriors are held at a time


class Completions(NamedTuple):
    """n completions of each of B images, best first."""

    images: Float[Tensor, "n b *d"]  # data units, observed pixels as they were given
    ranking: Float[Tensor, "n b"]  # ascending: `expected_error`, or `smoothed_score` in nats
    energies: Float[Tensor, "n b"]  # nats: `bundle.energy`
    uncertainty: Float[Tensor, "b *d"]  # standard deviation of each pixel over the completions
    pairwise_distance: Float[Tensor, " b"]  # mean squared distance of two completions

    def to(self, device: torch.device) -> "Completions":
        """The same on a device."""
        return Completions(*(part.to(device) for part in self))


def check_rank_by(rank_by: str) -> None:
    """UserError unless the word names a way of ranking."""
    check.one_of(get_args(RankBy), rank_by=rank_by)


def ranked(
    bundle: Bundle, images: Float[Tensor, "n b *d"], observations: Sequence[Observation], rank_by: RankBy
) -> Completions:
    """Completions in order. Images without an observation are ranked by energy, and so are all without a mixture."""
    n, b = images.shape[:2]
    flat = images.flatten(0, 1)
    energies = bundle.energy(flat).reshape(n, b)
    known = torch.zeros(b, dtype=torch.bool)
    ranking = torch.empty(n, b, device=images.device)
    if rank_by == "expected_error" and bundle.mixture_prior is not None:
        for observation in observations:
            known[observation.rows] = True
            some = images[:, observation.rows]
            ranking[:, observation.rows] = expected_error(bundle, bundle.mixture_prior, some, observation)
    if not bool(known.all()):
        rest = images[:, ~known].flatten(0, 1)
        ranking[:, ~known] = smoothed_score(bundle, rest).reshape(n, -1)
    order = ranking.argsort(dim=0, stable=True)
    images = images.gather(0, order.reshape(n, b, *([1] * len(bundle.shape))).expand_as(images))
    spread = images.std(0, correction=0)
    distance = 2 * n / max(n - 1, 1) * spread.square().flatten(1).sum(1)
    return Completions(images, ranking.gather(0, order), energies.gather(0, order), spread, distance)


def expected_error(
    bundle: Bundle, mixture: MixtureOfFactorAnalyzers, images: Float[Tensor, "n r *d"], observation: Observation
) -> Float[Tensor, "n r"]:
    """|P x - E[P truth | b]|², (n, r), squared model units, of completions of the observation's r images."""
    n, errors = len(images), []
    for part, projections in zip(images.split(IMAGES, 1), observation.projections.split(IMAGES), strict=True):
        mean = mixture.posterior(observation.linear, projections).mean
        z = mixture.coordinates(bundle.encode(part.flatten(0, 1)))
        errors.append((z.reshape(n, len(projections), -1) - mean).square().sum(-1))
    return torch.cat(errors, 1).to(torch.float32)


def smoothed_energy(bundle: Bundle, x: Tensor, *, level: float = RANKED_AT, draws: int = 3) -> Float[Tensor, " b"]:
    """mean_k U(z + s e_k, s²), (B,) nats, of x in data units: the energy of x blurred by noise of deviation s.

    At the lowest level a faint smooth stroke has a lower energy than a good digit; at s the shape decides. All rows
    share the e_k, so the noise cancels in differences. `level` is s in model units. An energy without noise levels
    gives `bundle.energy`.
    """
    if not bundle.noisy:
        return bundle.energy(x)
    s = min(max(level, bundle.t_min**0.5), bundle.t_max**0.5)
    stream = generator(0, "ranking", device=bundle.device)
    with torch.no_grad(), frozen(bundle.model) as energy:
        total = torch.zeros(len(x), dtype=torch.float32, device=bundle.device)
        for _ in range(draws):
            move = s * torch.randn(1, *bundle.shape, generator=stream, device=bundle.device)
            parts = [bundle.encode(part) + move for part in x.split(NETWORK_ROWS)]
            total += torch.cat([energy(y, y.new_full((len(y),), s * s)) for y in parts])
        return (total / draws).to(x.device)


def smoothed_score(bundle: Bundle, x: Tensor) -> Float[Tensor, " b"]:
    """`smoothed_energy` plus the mixture's energy at t = psi, (B,) nats.

    The network knows strokes; the mixture knows which shapes occur.
    """
    ranking, mixture = smoothed_energy(bundle, x), bundle.mixture_prior
    if mixture is None:
        return ranking
    parts = bundle.encode(x).split(NETWORK_ROWS)
    return ranking + torch.cat([mixture(z, mixture.psi.expand(len(z))) for z in parts]).to(x.device)
