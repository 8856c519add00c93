"""Chooses view and noise of a likelihood ratio by short trainings: those which best separate good draws from bad.

Where all draws share a background or a speckle, the ratio ranks draws by how much of it they have. A coarser view
(`apps.rerank.preprocessing`) or more noise hides that, and in the end hides the faults as well. Each option is trained
for a short while. Unseen draws are then split in two halves by their energies, and the option is judged by

    D(worse half, data) - D(better half, data),   D = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,

D the energy distance (Székely & Rizzo 2013), without bias in small sets. It is taken in coarse pixels after quantile
matching for images, so that no option gains by what all draws share, and in standardised columns for rows. Options that
no longer tell data from draws are dropped. Of those within two standard deviations of the largest, as random halves
deviate, the one that hides least is taken.

An AUC on unseen rows well below one is not enough: noise alone brings it about, and the ratio goes on ranking by what
all draws share. Fewer draws than half would not do either: the very best are too much alike to be near all of the data.
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
    """An option that was tried, measured on unseen rows.

    Args:
        view: What the network was shown.
        noise: In standard deviations of the data.
        auc: Of telling data from draws.
        split_gain: By how much the worse half of the draws is further from the data than the better one.
    """

    view: View
    noise: NoiseSetting
    auc: float
    split_gain: float


def options(
    real: Tensor, view: View | Literal["auto"], noise: NoiseSetting | Literal["auto"]
) -> list[tuple[View, NoiseSetting]]:
    """(view, noise) to be tried, which hides least first; what is not "auto" is kept, "binarize" is for writing."""
    shown: list[View] = ["pixels", "pixels"] if real.ndim != 4 else ["pixels", "pixels", "quantile_match"]
    if is_writing(real):
        shown.append("binarize")
    if view != "auto":
        shown = [view, view]
    found: list[tuple[View, NoiseSetting]] = []
    for step, name in enumerate(shown):
        option = (name, (WIDE if step else FAINT) if noise == "auto" else noise)
        if option not in found:
            found.append(option)
    return found


def best(tried: Sequence[ViewTrial], generated: Tensor, real: Tensor, *, seed: int = 0) -> ViewTrial:
    """The first, which hides least, of those that separate these rows best but for two deviations of chance.

    An AUC that is not two deviations above 1/2, as those of Mann & Whitney (1947) deviate, disqualifies.
    """
    n, m = len(generated), len(real)
    separating = [trial for trial in tried if trial.auc > 0.5 + 2 * math.sqrt((n + m + 1) / (12 * n * m))] or tried[:1]
    least = max(trial.split_gain for trial in separating) - 2 * chance(generated, real, seed=seed)
    return next(trial for trial in separating if trial.split_gain >= least)


def chance(generated: Tensor, real: Tensor, *, seed: int = 0, num: int = 20) -> float:
    """The standard deviation of `split_gain` for random halves."""
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
