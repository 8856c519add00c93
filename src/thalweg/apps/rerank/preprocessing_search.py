"""How much to hide from a likelihood ratio, without labels and without a judge: what separates good draws from bad.

Where data and draws are told apart at once, by a ground or a speckle that all draws share, the ratio ranks draws by how
much of that they have. Hiding more (`apps.rerank.preprocessing`, noise) helps until it hides the faults as well. How
much is right is seen by what a re-ranker is for: of draws that a network did not see, is the half that it likes nearer
to data that it did not see than the other half? Each way is trained for a short while and judged by

    D(worse half, data) - D(better half, data),   D = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,

D the energy distance (Székely & Rizzo 2013), without bias in small sets, in coarse pixels after quantile matching for
images, so that no way gains by the common giveaway, and in standardised columns for rows. Ways that no longer tell data
from draws at all are out; of those within two deviations of the largest, as halves by lot deviate, the one that hides
least is taken.

That data and draws overlap (an AUC on rows not seen that is well below one) is not enough: noise alone makes them, and
the ratio goes on ranking by the giveaway. Nor would fewer draws than half do: the very best are too few kinds of thing
to be near the data as a whole.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.rerank.preprocessing import View, is_writing
from thalweg.core.rng import generator

SHORTER = 4  # a trial's share of the steps
ROWS = 2000
SIDE = 7
FAINT, WIDE = 0.3, (0.3, 3.0)  # deviations of the data
NoiseSetting = float | tuple[float, float]


class ViewTrial(NamedTuple):
    """A way that was tried; on rows not seen the AUC of telling data from draws, and by how much further from the data
    the worse half of the draws is than the better.
    """

    view: View
    noise: NoiseSetting
    auc: float
    split_gain: float


def ways(
    real: Tensor, view: View | Literal["auto"], noise: NoiseSetting | Literal["auto"]
) -> list[tuple[View, NoiseSetting]]:
    """What may be tried, the least that hides first; what is given is kept, and "binarize" is for writing only."""
    shown: list[View] = ["pixels", "pixels"] if real.ndim != 4 else ["pixels", "pixels", "quantile_match"]
    if is_writing(real):
        shown.append("binarize")
    if view != "auto":
        shown = [view, view]
    found: list[tuple[View, NoiseSetting]] = []
    for step, name in enumerate(shown):
        way = (name, (WIDE if step else FAINT) if noise == "auto" else noise)
        if way not in found:
            found.append(way)
    return found


def best(tried: Sequence[ViewTrial], generated: Tensor, real: Tensor, *, seed: int = 0) -> ViewTrial:
    """The first, which hides least, of those that separate these rows best but for two deviations of chance.

    An AUC that is not two deviations above 1/2, as those of Mann & Whitney (1947) deviate, disqualifies.
    """
    n, m = len(generated), len(real)
    told = [trial for trial in tried if trial.auc > 0.5 + 2 * math.sqrt((n + m + 1) / (12 * n * m))] or tried[:1]
    least = max(trial.split_gain for trial in told) - 2 * chance(generated, real, seed=seed)
    return next(trial for trial in told if trial.split_gain >= least)


def chance(generated: Tensor, real: Tensor, *, seed: int = 0, num: int = 20) -> float:
    """The standard deviation of `split_gain` for halves by lot."""
    lots = torch.rand(num, len(generated), generator=generator(seed, "trials"))
    return float(torch.tensor([split_gain(u, generated, real) for u in lots]).std())


def split_gain(u: Float[Tensor, " n"], generated: Tensor, real: Tensor) -> float:
    """D(worse half, real) - D(better half, real) of the generated rows by energies u, low = good; 0 for one row."""
    if len(u) < 2:
        return 0.0
    order, data = u.argsort(stable=True), coarse(real[:ROWS])
    better, worse = (coarse(generated[half]) for half in order.tensor_split(2))
    return energy_distance(worse, data) - energy_distance(better, data)


def coarse(x: Tensor) -> Float[Tensor, "n f"]:
    """What rows are compared by: images at 7 x 7 at most, rows as they are."""
    return F.adaptive_avg_pool2d(x, (min(SIDE, x.shape[2]), min(SIDE, x.shape[3]))).flatten(1) if x.ndim == 4 else x


def energy_distance(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> float:
    """D of the laws that two sets are drawn from, without bias, so that it may be below zero where they are one."""
    return float(2 * torch.cdist(a, b).mean() - _spread(a) - _spread(b))


def _spread(a: Float[Tensor, "n f"]) -> Tensor:
    return torch.cdist(a, a).sum() / max(1, len(a) * (len(a) - 1))
