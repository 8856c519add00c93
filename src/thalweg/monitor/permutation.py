"""A permutation test of several statistics at once, exact in level whatever their laws and dependence."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor


class PermutationResult(NamedTuple):
    """p_value: of all statistics together; single: of each by itself; deviations: how far below its mean each is."""

    p_value: float
    single: dict[str, float]
    deviations: dict[str, float]


def min_rank_test(statistics: dict[str, Float[Tensor, " p"]]) -> PermutationResult:
    """The p-value of element 0 among all p permutations, low values of any statistic being bad.

    Each permutation's score is the smallest rank among its statistics (Westfall & Young 1993); equal scores are ordered
    by the largest deviation in units of the statistic's own. The p-value is the share of permutations with a score as
    bad or worse, element 0 included, so P(p <= a) <= a where all are exchangeable. Ties count against an alarm.
    """
    t = torch.stack(list(statistics.values()), 1).double()
    ranks = torch.from_numpy(rankdata(t.numpy(), method="max", axis=0))
    deviation = t.std(0)
    z = torch.where(deviation > 0, (t.mean(0) - t) / deviation.clamp(min=1e-300), 0.0)
    worst = z.amax(1).clamp(min=0)
    score = ranks.amin(1) - worst / (1 + worst)
    names = list(statistics)
    return PermutationResult(
        (score <= score[0]).double().mean().item(),
        dict(zip(names, (ranks[0] / len(t)).tolist(), strict=True)),
        dict(zip(names, z[0].tolist(), strict=True)),
    )
