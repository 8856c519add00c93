"""Completions of an image in order, best first: by the error to be expected, or by energy.

The lowest energy is not the best guess: a rare shape may have a sharp peak, and all completions of a common one share
their probability. What is wanted of a first completion is that it be near the truth, and

    E[|P(x - truth)|² | seen] = |P x - E[P truth | seen]|² + constant

is the squared distance to the posterior's mean (the Bayes risk; Kumar & Byrne 2004 choose translations so). P, the
principal components, leaves out what does not tell one shape from another; the mean is the mixture's, in closed form.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.posterior import NETWORK_ROWS, Sight
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.spectral import frozen

RankBy = Literal["error", "energy"]
RANKED_AT = 0.5  # of several levels tried on training digits, the best at telling right from wrong
IMAGES = 256  # whose posteriors are held at a time


class Completions(NamedTuple):
    """n completions of each of B images, best first."""

    images: Float[Tensor, "n b *d"]  # data units, observed pixels as they were given
    ranking: Float[Tensor, "n b"]  # ascending: `expected_error`, or `standing` in nats
    energies: Float[Tensor, "n b"]  # nats: `bundle.energy`
    uncertainty: Float[Tensor, "b *d"]  # standard deviation of each pixel over the completions
    variety: Float[Tensor, " b"]  # mean squared distance of two completions


def check_rank_by(rank_by: str) -> None:
    """UserError for a word that is no way of ranking."""
    if rank_by not in get_args(RankBy):
        raise UserError(f"rank_by={rank_by!r}: want {' or '.join(map(repr, get_args(RankBy)))}")


def ranked(bundle: Any, images: Float[Tensor, "n b *d"], sights: Sequence[Sight], rank_by: RankBy) -> Completions:
    """Completions in order. Images of which nothing was seen are ranked by energy, as all are without a mixture."""
    n, b = images.shape[:2]
    flat = images.flatten(0, 1)
    energies = bundle.energy(flat).reshape(n, b)
    told = torch.zeros(b, dtype=torch.bool)
    ranking = torch.empty(n, b)
    if rank_by == "error" and bundle.guess is not None:
        for sight in sights:
            told[sight.rows] = True
            ranking[:, sight.rows] = expected_error(bundle, images[:, sight.rows], sight)
    if not bool(told.all()):
        rest = images[:, ~told].flatten(0, 1)
        ranking[:, ~told] = standing(bundle, rest).reshape(n, -1)
    order = ranking.argsort(dim=0, stable=True)
    images = images.gather(0, order.reshape(n, b, *([1] * len(bundle.shape))).expand_as(images))
    spread = images.std(0, correction=0)
    variety = 2 * n / max(n - 1, 1) * spread.square().flatten(1).sum(1)
    return Completions(images, ranking.gather(0, order), energies.gather(0, order), spread, variety)


def expected_error(bundle: Any, images: Float[Tensor, "n r *d"], sight: Sight) -> Float[Tensor, "n r"]:
    """|P x - E[P truth | seen]|², (n, r), squared model units, of completions of the sight's r images."""
    n, errors = len(images), []
    for part, read in zip(images.split(IMAGES, 1), sight.read.split(IMAGES), strict=True):
        mean = bundle.guess.given(sight.directions, read).mean
        z = bundle.guess.coordinates(bundle.transform.forward(part.flatten(0, 1)))
        errors.append((z.reshape(n, len(read), -1) - mean).square().sum(-1))
    return torch.cat(errors, 1).to(torch.float32)


def smoothed_energy(bundle: Any, x: Tensor, *, level: float = RANKED_AT, draws: int = 3) -> Float[Tensor, " b"]:
    """mean_k U(z + s e_k, s²), (B,) nats, of x in data units: how likely x's surroundings of size s are, not x alone.

    At the lowest level a faint stroke that is merely smooth beats a good digit; what counts at s is the shape. The
    same e_k for every row, so differences are nearly free of their noise. `level` s in model units; `bundle.energy`
    where the energy has no noise levels.
    """
    if not bundle.noisy:
        return bundle.energy(x)
    s = min(max(level, bundle.t_min**0.5), bundle.t_max**0.5)
    stream = generator(0, "ranking")
    with torch.no_grad(), frozen(bundle.model) as energy:
        total = x.new_zeros(len(x), dtype=torch.float32)
        for _ in range(draws):
            move = s * torch.randn(1, *bundle.shape, generator=stream)
            parts = [bundle.transform.forward(part) + move for part in x.split(NETWORK_ROWS)]
            total += torch.cat([energy(y, y.new_full((len(y),), s * s)) for y in parts])
        return total / draws


def standing(bundle: Any, x: Tensor) -> Float[Tensor, " b"]:
    """The energy of x's surroundings plus the mixture's at t = psi, (B,) nats.

    The one knows strokes, the other which shapes there are.
    """
    ranking = smoothed_energy(bundle, x)
    if bundle.guess is None:
        return ranking
    z = bundle.transform.forward(x)
    return ranking + torch.cat([bundle.guess(y, bundle.guess.psi.expand(len(y))) for y in z.split(NETWORK_ROWS)])
