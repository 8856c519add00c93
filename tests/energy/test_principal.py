"""The mixture in principal components: normalised at every noise level, and exact given any linear view."""

import math

import numpy as np
import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.density import factor_mixture
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers, evenly_spaced_rows
from thalweg.energy.linear_observation import LinearObservation


@pytest.fixture(scope="module")
def rows():
    """Three clusters on a curve in six dimensions, with little noise off it."""
    g = generator(0, "rows")
    z = torch.randn(3000, 2, generator=g) * torch.tensor([1.0, 0.3]) + 4 * torch.randint(0, 3, (3000, 1), generator=g)
    mix = torch.randn(2, 6, generator=g)
    return torch.sin(z @ mix) + 0.05 * torch.randn(3000, 6, generator=g)


def dense(m: MixtureOfFactorAnalyzers, t: float):
    """The same mixture as K full Gaussians: (weights, means, covariances)."""
    eye = torch.eye(len(m.mean)).double()
    covariances = m.basis @ (m.factors @ m.factors.mT) @ m.basis.T + (m.psi + t) * eye
    return m.log_weights.exp(), m.mean + m.means @ m.basis.T, covariances


@pytest.mark.parametrize("t", [0.0, 0.3])
def test_it_is_minus_log_of_the_density(t):
    """Against scipy's Gaussians; the mutant that adds t within the subspace only is off."""
    from scipy.stats import multivariate_normal

    m, y = MixtureOfFactorAnalyzers.example(), torch.randn(50, 3, generator=generator(0, "y")).double()
    weights, means, covariances = dense(m, t)
    parts = zip(weights, means, covariances, strict=True)
    p = sum(float(w) * multivariate_normal(mu.numpy(), c.numpy()).pdf(y.numpy()) for w, mu, c in parts)
    torch.testing.assert_close(m(y, torch.full((50,), t)), -torch.from_numpy(np.log(p)))
    mutant = m(y, torch.zeros(50))
    assert t == 0 or float((mutant + torch.from_numpy(np.log(p))).abs().max()) > 0.1


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_draws_given_a_view_have_the_exact_law(noise):
    """Against the dense mixture conditioned by hand: mean and covariance of 40,000 draws within five standard errors.

    The mutant that keeps the components' prior weights misses the mean.
    """
    m, n = MixtureOfFactorAnalyzers.example(), 40_000
    seen = LinearObservation.from_matrix(torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 1.0]]), noise)
    read = seen.project(torch.tensor([[1.8, 0.4]]))
    g = generator(1, "draws")
    z, u = torch.randn(n, 2, generator=g), torch.rand(n, generator=g)
    x = m.sample_posterior(seen, read.expand(n, -1), z, u).double()
    weights, means, _ = dense(m, 0.0)
    v = seen.basis.double()
    signal = m.basis @ (m.factors @ m.factors.mT) @ m.basis.T
    shown = v.T @ signal @ v + (seen.noise.double().square() + m.psi).diag_embed()
    gain = signal @ v @ torch.linalg.inv(shown)
    off = read.double() - means @ v
    log = (
        weights.log()
        - 0.5 * torch.logdet(shown)
        - 0.5 * (off[:, None] @ torch.linalg.inv(shown) @ off[..., None])[:, 0, 0]
    )
    share, middles = log.softmax(0), means + (gain @ off[..., None])[..., 0]
    mean = share @ middles
    inner = signal - gain @ v.T @ signal
    spread = middles - mean
    covariance = (share[:, None, None] * (inner + spread[..., None] * spread[:, None])).sum(0)
    error = 5 * (covariance.diagonal() / n).sqrt() + 1e-6
    assert bool(((x.mean(0) - mean).abs() < error).all())
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.05, atol=0.01)
    assert float((weights @ middles - mean).abs().max()) > float(error.max())
    told = m.posterior(seen, read)
    torch.testing.assert_close(m.mean + told.mean[0] @ m.basis.T, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(m.coordinates(x[:5].float()) @ m.basis.T + m.mean, x[:5], rtol=1e-4, atol=1e-4)


def test_it_fits_what_no_gaussian_does(rows):
    """Unseen rows are likelier than under one Gaussian; the mutant that is one Gaussian is not."""
    many, new = MixtureOfFactorAnalyzers.fit(rows[:2500]), rows[2500:]
    one = MixtureOfFactorAnalyzers.fit(rows[:100])  # too few for a second component
    assert (len(many.means), len(one.means)) == (16, 1)
    t = torch.zeros(len(new))
    assert float(many(new, t).mean()) < float(one(new, t).mean()) - 0.5


def test_the_same_seed_gives_the_same_mixture(rows):
    a, b = (MixtureOfFactorAnalyzers.fit(rows[:1000], seed=3) for _ in range(2))
    assert torch.equal(a.factors, b.factors)


@pytest.mark.parametrize("x", [torch.zeros(5, 1, 2, 2), torch.ones(2, 3), torch.eye(2)[:, :1]])
def test_constant_and_few_rows_give_finite_energies(x):
    m = MixtureOfFactorAnalyzers.fit(x)
    assert bool(m(x, torch.full((len(x),), 0.01)).isfinite().all())
    seen = LinearObservation.from_matrix(torch.eye(x[0].numel())[:1], 0.0)
    drawn = m.sample_posterior(
        seen, x.flatten(1)[:, :1], torch.zeros(len(x), m.basis.shape[1]), torch.full((len(x),), 0.5)
    )
    assert bool(drawn.isfinite().all())


def test_of_large_tables_some_rows_are_taken(monkeypatch):
    monkeypatch.setattr("thalweg.energy.density.factor_mixture.NUMBERS", 40)
    assert evenly_spaced_rows(torch.arange(100.0)[:, None].expand(100, 2))[:, 0].tolist() == [
        math.floor(99 * i / 19) for i in range(20)
    ]


def test_the_rows_of_em_are_whitened_a_block_at_a_time(rows, monkeypatch):
    whole, sizes, white = MixtureOfFactorAnalyzers.fit(rows[:1000]), [], factor_mixture._LogTerms.__call__
    monkeypatch.setattr(factor_mixture, "BLOCK_NUMBERS", 100 * 6 * 6)  # of 6 components in 6 directions
    monkeypatch.setattr(factor_mixture._LogTerms, "__call__", lambda terms, z: sizes.append(len(z)) or white(terms, z))
    parts = MixtureOfFactorAnalyzers.fit(rows[:1000])
    assert sizes == [100] * 10
    assert torch.allclose(parts.factors, whole.factors, atol=1e-4)


def test_parts_that_do_not_fit_are_refused(rows):
    state = MixtureOfFactorAnalyzers.example().state_dict()
    with pytest.raises(ValueError, match="mean: must have the shape"):
        MixtureOfFactorAnalyzers((4,), **state)


def test_positions_of_another_shape_are_refused():
    """One number would be taken for each of three."""
    with pytest.raises(UserError) as error:
        MixtureOfFactorAnalyzers.example()(torch.zeros(2, 1), torch.ones(2))
    assert error.value.argument == "x"
