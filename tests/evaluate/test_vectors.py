"""Discrepancy of vectors against closed forms, with an error bar and estimators that it must reject."""

import math

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.evaluate.vectors import FACTORS, baselines, compare, discrepancy, median_distance, mmd2

SIGMAS = 5


def cloud(n, step, *, shift=0.0, scale=1.0, d=2):
    return shift + scale * torch.randn(n, d, generator=generator(0, "vectors", step))


def closed(s, gap, va, vb, d=2):
    """MMD² of N(0, va I) and N(m, vb I), |m| = gap, for a Gaussian kernel of bandwidth s."""

    def mean(v, far):  # E exp(-|x - y|² / (2 s²)), x - y ~ N(far, v I)
        return (s**2 / (s**2 + v)) ** (d / 2) * math.exp(-(far**2) / (2 * (s**2 + v)))

    return mean(2 * va, 0) + mean(2 * vb, 0) - 2 * mean(va + vb, gap)


def biased(a, b, bandwidths):
    """The estimator that keeps each row's kernel with itself."""
    kernels = [
        sum(torch.exp(torch.cdist(x.double(), y.double()).square() / (-2 * s**2)).mean() for s in bandwidths)
        for x, y in ((a, a), (b, b), (a, b))
    ]
    return float(kernels[0] + kernels[1] - 2 * kernels[2]) / len(bandwidths)


def z_score(estimate, truth, *, repeats=200, n=60, m=40, shift=0.0, scale=1.0, bandwidths=(1.0,)):
    """(mean of the estimates - truth) in its own standard errors."""
    found = torch.tensor(
        [estimate(cloud(n, 2 * i), cloud(m, 2 * i + 1, shift=shift, scale=scale), bandwidths) for i in range(repeats)],
        dtype=torch.float64,
    )
    return float((found.mean() - truth) / (found.std() / math.sqrt(repeats)))


def test_unbiased_on_equal_laws_and_the_biased_estimator_is_met():
    assert abs(z_score(mmd2, 0.0)) < SIGMAS
    assert z_score(biased, 0.0) > SIGMAS


@pytest.mark.parametrize(("shift", "scale"), [(0.7, 1.0), (0.0, 0.5), (0.5, 2.0)])
def test_the_mean_is_the_closed_form_of_two_gaussians(shift, scale):
    bandwidths = (0.3, 1.0)
    truth = sum(closed(s, shift * math.sqrt(2), 1.0, scale**2) for s in bandwidths) / 2
    assert abs(z_score(mmd2, truth, shift=shift, scale=scale, bandwidths=bandwidths)) < SIGMAS
    assert z_score(biased, truth, shift=shift, scale=scale, bandwidths=bandwidths) > SIGMAS


def test_blocks_of_rows_change_nothing():
    a, b = cloud(600, 0), cloud(700, 1, shift=0.5)  # more than one block each
    n, m, s = len(a), len(b), 0.8
    aa, bb, ab = (
        torch.exp(torch.cdist(x.double(), y.double()) ** 2 / (-2 * s**2)) for x, y in ((a, a), (b, b), (a, b))
    )
    want = (aa.sum() - n) / (n * (n - 1)) + (bb.sum() - m) / (m * (m - 1)) - 2 * ab.mean()
    assert mmd2(a, b, (s,)) == pytest.approx(float(want), abs=1e-9)


def test_fine_bandwidths_tell_eight_modes_from_their_gaussian_where_the_median_hardly_does():
    angle = torch.randint(8, (2, 1000), generator=generator(0, "modes")) * (math.pi / 4)
    ring = torch.stack([angle.cos(), angle.sin()], 2) * math.sqrt(2) + 0.15 * cloud(2000, 3).view(2, 1000, 2)
    real, gaussian = discrepancy(ring[0], ring[1]), discrepancy(cloud(1000, 4), ring[1])
    assert real["mmd2_multi"] < 0.002
    assert gaussian["mmd2_multi"] > 10 * max(real["mmd2_multi"], 0.002)
    assert gaussian["mmd2"] < 0.01


def test_median_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert median_distance(x) == 2
    assert median_distance(torch.cat([torch.zeros(50, 1), torch.full((1, 1), 2.0)])) == 2
    assert median_distance(torch.ones(9, 2)) == 1


def test_lost_rows_are_counted_and_left_out():
    a, b = cloud(300, 0), cloud(300, 1)
    whole = compare(a, b)
    assert set(whole) == {"mmd2", "mmd2_multi", "precision", "recall", "lost"}
    assert whole["lost"] == 0
    assert min(whole["precision"], whole["recall"]) > 0.9
    a[:60, 1], a[60:75, 0] = math.nan, math.inf
    some = compare(a, b)
    assert some == {**compare(a[75:], b[:225]), "lost": pytest.approx(0.25)}
    a[:160] = math.nan
    most = compare(a, b)
    assert most.pop("lost") == pytest.approx(160 / 300)
    assert all(math.isnan(value) for value in most.values())


def test_baselines_are_ordered():
    def moons(step):
        t = math.pi * torch.rand(400, generator=generator(0, "moons", step))
        return torch.stack([t.cos(), t.sin()], 1) + 0.05 * cloud(400, step)

    reference, train = moons(0), moons(1)
    sets = baselines(moons(2), train, seed=1)
    assert all(x.shape == reference.shape for x in sets.values())
    found = {name: compare(x, reference)["mmd2_multi"] for name, x in sets.items()}
    assert found["real"] < 0.2 * min(found["gaussian"], found["uniform"])


@pytest.mark.parametrize(
    ("rows", "bandwidths", "message"),
    [
        (1, (1.0,), "1 and 1 rows"),
        (5, (), r"bandwidths=\(\)"),
        (5, (0.0,), "bandwidths"),
        (5, (math.nan,), "bandwidths"),
    ],
)
def test_errors_name_the_argument(rows, bandwidths, message):
    with pytest.raises(ValueError, match=message):
        mmd2(cloud(rows, 0), cloud(rows, 1), bandwidths)


def test_the_coarsest_bandwidth_is_the_median():
    assert max(FACTORS) == 1.0
