"""Figures of sample quality against known cases and against other libraries' formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics import pairwise_distances

from thalweg.core.rng import generator
from thalweg.evaluate.samples import (
    baselines,
    class_entropy,
    frechet,
    gaussian_noise,
    memorisation,
    nearest,
    neighbourhoods,
    quality,
)


def cloud(n, d=8, *, step=0, shift=0.0):
    return torch.randn(n, d, generator=generator(0, "cloud", step)) * torch.linspace(0.5, 2, d) + shift


def test_frechet_equals_scipys_square_root():
    a, b = cloud(300), cloud(200, step=1, shift=0.7)
    ca, cb = (np.cov(x.double().numpy().T) for x in (a, b))
    gap = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    assert frechet(a, b) == pytest.approx(gap + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real), rel=1e-9)


def test_frechet_of_equal_sets_is_zero_even_where_the_covariance_is_singular():
    a = torch.cat([cloud(100), torch.zeros(100, 3)], dim=1)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_neighbourhoods_equal_the_papers_dense_formula():
    real, fake, k = cloud(150), cloud(120, step=1, shift=0.5), 5
    dr, df, cross = (pairwise_distances(a.numpy(), b.numpy()) for a, b in ((real, real), (fake, fake), (real, fake)))
    rr, rf = (np.sort(d, axis=1)[:, k] for d in (dr, df))
    inside = cross < rr[:, None]
    found = neighbourhoods(fake, real, k=k)
    assert found["density"] == pytest.approx(inside.sum(0).mean() / k)
    assert found["coverage"] == pytest.approx((cross.min(1) < rr).mean())
    assert found["precision"] == pytest.approx(inside.any(0).mean())
    assert found["recall"] == pytest.approx((cross < rf[None]).any(1).mean())


def test_equal_sets_are_covered_and_far_sets_are_not():
    a = cloud(700)  # more than one block
    same, far = neighbourhoods(a, a), neighbourhoods(a + 100, a)
    assert (same["coverage"], same["precision"], same["recall"]) == (1, 1, 1)
    assert (far["density"], far["coverage"], far["precision"], far["recall"]) == (0, 0, 0, 0)


def test_one_repeated_sample_has_no_coverage():
    a = cloud(200)
    assert neighbourhoods(a[:1].expand(200, -1), a)["coverage"] < 0.1


def test_neighbourhoods_refuses_too_few_rows():
    with pytest.raises(ValueError, match="k=5"):
        neighbourhoods(cloud(5), cloud(50))


def test_class_entropy():
    assert class_entropy(torch.arange(10).repeat(7)) == pytest.approx(math.log(10))
    assert class_entropy(torch.zeros(50, dtype=torch.long)) == 0


def test_memorisation_tells_copies_from_new_rows():
    train, unseen, new = cloud(400), cloud(300, step=1), cloud(300, step=2)
    copied, honest = memorisation(train[:100], unseen, train), memorisation(new, unseen, train)
    assert copied["nearest_ratio"] < 1e-2
    assert copied["share_near"] == 1
    assert honest["nearest_ratio"] == pytest.approx(1, abs=0.15)
    assert honest["share_near"] < 0.05


def test_nearest_finds_the_row():
    a = cloud(600)
    d, index = nearest(a, a.flip(0))
    assert torch.equal(index, torch.arange(600).flip(0))
    assert d.max() < 1e-2


def test_gaussian_noise_keeps_mean_and_covariance():
    a = cloud(500, shift=3.0)
    n = 20_000
    z = gaussian_noise(a, n)
    scale = a.std(0) / math.sqrt(n)
    assert ((z.mean(0) - a.mean(0)).abs() < 5 * scale).all()
    # An entry of the covariance of n draws has a standard deviation below sqrt(2/n) s_i s_j.
    bound = 5 * math.sqrt(2 / n) * a.std(0)[:, None] * a.std(0)
    assert ((torch.cov(z.T) - torch.cov(a.T)).abs() < bound).all()


def test_baselines_bracket_the_figures():
    train, unseen, reference = (cloud(300, step=s) for s in range(3))
    table = {k: quality(v, reference, train, None) for k, v in baselines(unseen, train).items()}
    assert set(table) == {"real", "copies", "gaussian"}
    assert table["copies"]["nearest_ratio"] < 1e-2
    assert table["real"]["coverage"] > 0.9


def test_quality_refuses_samples_that_are_not_finite():
    a = cloud(50)
    bad = a.clone()
    bad[3, 1] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        quality(bad, a, a, None)
