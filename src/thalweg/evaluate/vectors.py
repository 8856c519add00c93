"""Two sets of low-dimensional vectors compared as they are: kernel mean discrepancy, neighbour balls, baselines.

In few dimensions plain distances mean something, so no features are needed. Columns come in comparable units
(standardised). One bandwidth at the data's median distance hardly tells a ring of eight modes from a Gaussian, so the
mean over several, finer ones stands beside it. No figure means anything alone: `baselines` gives the sets to print
beside.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.evaluate.corruptions import uniform_noise
from thalweg.evaluate.samples import gaussian_noise, neighbourhoods

MAX_DIM = 16  # distances concentrate above: every pair of rows is about as far apart as any other
FACTORS = (0.0625, 0.125, 0.25, 0.5, 1.0)  # of the median distance, for the MMD over several bandwidths
MEDIAN_ROWS = 2000

Rows = Float[Tensor, "n d"]


def median_distance(x: Rows) -> float:
    """Median of |x_i - x_j| over the pairs i < j that differ, in units of x: the usual bandwidth of a kernel.

    Of the first 2,000 rows; 1 where all are equal (Gretton et al. 2012, section 8).
    """
    found = torch.pdist(x[:MEDIAN_ROWS].double())
    found = found[found > 0]
    return found.median().item() if len(found) else 1.0


def mmd2(a: Rows, b: Rows, bandwidths: Sequence[float]) -> float:
    """Unbiased squared maximum mean discrepancy of two laws, the mean over the bandwidths s of a Gaussian kernel.

    MMD² = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_ij k(a_i, b_j), k = exp(-|x - y|² / (2 s²)):
    0 on average for equal laws, hence sometimes below, and at most 2. Float64, O(n + m) memory a row of a block.
    ValueError on fewer than two rows or a bandwidth that is not positive (Gretton et al. 2012, lemma 6).
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"{n} and {m} rows: an unbiased discrepancy wants two or more each")
    if not bandwidths or not all(0 < s < math.inf for s in bandwidths):
        raise ValueError(f"bandwidths={tuple(bandwidths)}: want positive numbers, in units of the rows")
    aa, bb, ab = (_kernel_sum(x, y, bandwidths) for x, y in ((a, a), (b, b), (a, b)))
    return (aa - n) / (n * (n - 1)) + (bb - m) / (m * (m - 1)) - 2 * ab / (n * m)  # a row's own kernel is 1


def _kernel_sum(a: Rows, b: Rows, bandwidths: Sequence[float], block: int = 512) -> float:
    """sum_ij k(a_i, b_j), the mean over the bandwidths."""
    a, b, total = a.double(), b.double(), 0.0
    for rows in a.split(block):
        # The fast form |x|² + |y|² - 2 x·y rounds a row's distance to itself away from 0.
        squares = torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
        total += sum(torch.exp(squares / (-2 * s**2)).sum().item() for s in bandwidths)
    return total / len(bandwidths)


def discrepancy(samples: Rows, data: Rows) -> dict[str, float]:
    """`mmd2` at the data's median distance, and `mmd2_multi`, its mean over `FACTORS` of that distance."""
    s = median_distance(data)
    return {"mmd2": mmd2(samples, data, (s,)), "mmd2_multi": mmd2(samples, data, [f * s for f in FACTORS])}


def compare(samples: Rows, data: Rows, *, k: int = 5) -> dict[str, float]:
    """mmd2, mmd2_multi, precision, recall and `lost`, the share of samples with a value that is not finite.

    Lost rows are left out of the rest, and as many of the data with them; with more than half lost the rest is NaN.
    Precision = share of samples in a ball that reaches from a datum to its k-th neighbour, recall the converse
    (Kynkäänniemi et al. 2019).
    """
    finite = samples.isfinite().all(1)
    lost = 1 - finite.double().mean().item()
    if lost > 0.5:
        return {**dict.fromkeys(("mmd2", "mmd2_multi", "precision", "recall"), math.nan), "lost": lost}
    samples, data = samples[finite], data[: len(data) - int((~finite).sum())]
    near = neighbourhoods(samples, data, k=k)
    return {**discrepancy(samples, data), "precision": near["precision"], "recall": near["recall"], "lost": lost}


def baselines(unseen: Rows, train: Rows, *, seed: int = 0) -> dict[str, Rows]:
    """The sets to print beside the samples, each as large as `unseen`.

    real: unseen data that are not the reference, what perfection scores; gaussian: draws of the training data's mean
    and covariance; uniform: points evenly over the box that holds the unseen data.
    """
    return {
        "real": unseen,
        "gaussian": gaussian_noise(train, len(unseen), seed=seed),
        "uniform": uniform_noise(unseen, seed),
    }
