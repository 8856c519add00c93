"""The probability-flow likelihood against closed forms (row S32), each with a mutant that is rejected."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from thalweg.core.rng import generator
from thalweg.evaluate import likelihood as partition
from thalweg.evaluate.likelihood import bits_per_dim, compare, dequantise, gaussian_prior, ode_log_prob

T_MIN, T_MAX = 0.02**2, 20.0**2
MEANS = torch.tensor([[-1.0, 0.5], [1.2, -0.3], [0.1, 1.5]]).double()
WEIGHTS = torch.tensor([0.5, 0.3, 0.2]).double()
SPREAD = torch.tensor([0.05, 0.10, 0.03]).double()  # variances; skewed on purpose


def mixture(y, t):
    """U(y, t) of a mixture of three Gaussians blurred to variance s² + t, normalised."""
    v = SPREAD + t.double()[:, None]
    d2 = (y.double()[:, None] - MEANS).square().sum(2)
    return -torch.logsumexp(WEIGHTS.log() - torch.log(2 * math.pi * v) - d2 / (2 * v), 1)


def at(energy, t):
    return lambda y: -energy(y, torch.full((len(y),), t))


def moments():
    mean = WEIGHTS @ MEANS
    c = MEANS - mean
    return mean, (WEIGHTS * SPREAD).sum() * torch.eye(2).double() + (WEIGHTS[:, None] * c).T @ c


def gaussian_at_the_end():
    mean, cov = moments()
    return MultivariateNormal(mean, cov + T_MAX * torch.eye(2)).log_prob


def mixture_draws(n):
    g = generator(0, "mixture")
    which = torch.multinomial(WEIGHTS, n, replacement=True, generator=g)
    z = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return MEANS[which] + z * (SPREAD[which] + T_MIN).sqrt()[:, None]


def run(energy, y, prior, **settings):
    return ode_log_prob(energy, y, t_min=T_MIN, t_max=T_MAX, prior=prior, **settings)


def test_mixture_is_matched_with_a_prior_that_knows_only_two_moments():
    y = mixture_draws(400)
    gap = run(mixture, y, gaussian_at_the_end()) - at(mixture, T_MIN)(y)
    assert gap.abs().mean() < 2e-3


def test_s32_the_density_integrates_to_one():
    line = torch.linspace(-3.2, 3.2, 81).double()
    y = torch.cartesian_prod(line, line)
    total = (run(mixture, y, gaussian_at_the_end()).exp().sum() * (line[1] - line[0]) ** 2).item()
    assert total == pytest.approx(1, abs=1e-3)


def test_order_four_in_the_number_of_steps():
    y, exact = mixture_draws(100), at(mixture, T_MAX)
    coarse, fine = ((run(mixture, y, exact, num_steps=n) - at(mixture, T_MIN)(y)).abs().mean() for n in (24, 48))
    assert coarse / fine > 10  # 16 in the limit


MUTANTS = {
    "missing half in the integral": lambda g, lap: (g, 2 * lap),
    "missing half in the motion": lambda g, lap: (2 * g, lap),
    "sign of the Laplacian": lambda g, lap: (g, -lap),
    "sign of the motion": lambda g, lap: (-g, lap),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(name, monkeypatch):
    right = partition._grad_and_laplacian
    monkeypatch.setattr(partition, "_grad_and_laplacian", lambda *a: MUTANTS[name](*right(*a)))
    y = mixture_draws(200)
    gap = run(mixture, y, gaussian_at_the_end()) - at(mixture, T_MIN)(y)
    assert not gap.abs().mean() < 0.1


def test_hutchinson_is_unbiased_on_a_wide_gaussian(monkeypatch):
    """d = 36 > 16, so random probes: their mean is within 4 standard errors. Mutant: probes 2 % too long."""
    g = generator(0, "wide")
    x = torch.randn(500, 36, generator=g) @ (0.3 * torch.randn(36, 36, generator=g))
    prior = gaussian_prior(x, T_MAX)
    values, vectors = torch.linalg.eigh(torch.cov(x.double().T))
    mean = x.double().mean(0)

    def energy(y, t):
        v = values + t.double()[:, None]
        return 0.5 * (((y.double() - mean) @ vectors).square() / v + (2 * math.pi * v).log()).sum(1)

    y = x[:64].view(64, 1, 6, 6)
    truth = at(lambda y, t: energy(y.flatten(1), t), T_MIN)(y)
    one, four = (run(lambda y, t: energy(y.flatten(1), t), y, prior, num_probes=k, seed=1) - truth for k in (1, 4))
    assert one.mean().abs() < 4 * one.std() / 8
    assert 1.5 < one.std() / four.std() < 2.7  # four probes halve it
    right = partition._probes
    monkeypatch.setattr(partition, "_probes", lambda *a: 1.02 * right(*a))
    wrong = run(lambda y, t: energy(y.flatten(1), t), y, prior, num_probes=4, seed=1) - truth
    assert wrong.mean().abs() > 4 * wrong.std() / 8


def test_gaussian_prior_is_scipys():
    from scipy.stats import multivariate_normal

    x = torch.randn(200, 3, generator=generator(0, "prior")).double() * torch.tensor([1.0, 2.0, 3.0])
    got = gaussian_prior(x, 0.7)(x[:5])
    want = multivariate_normal(x.mean(0).numpy(), (torch.cov(x.T) + 0.7 * torch.eye(3)).numpy()).logpdf(x[:5])
    assert torch.allclose(got, torch.as_tensor(want))


def test_bits_per_dim_of_the_uniform_density_is_eight():
    assert bits_per_dim(torch.zeros(4), 784).tolist() == [8] * 4
    # A density of 256 on one cell (a grey level known for sure) costs nothing.
    assert bits_per_dim(torch.tensor([784 * math.log(256)]), 784).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_dequantise_stays_inside_its_grey_level(as_bytes):
    levels = torch.arange(256).repeat(50, 1)
    x = levels.to(torch.uint8) if as_bytes else levels.float() / 255
    u = dequantise(x, generator(0, "levels"))
    assert torch.equal((u * 256).floor().long(), levels)
    inside = u * 256 - levels
    assert abs(inside.mean().item() - 0.5) < 5 / math.sqrt(12 * inside.numel())


def test_compare():
    network, ode = torch.tensor([-100.0, -110.0, -90.0]), torch.tensor([-101.0, -112.0, -93.0])
    found = compare(network, ode)
    assert found["mean_abs_gap"] == pytest.approx(2)
    assert found["relative_gap"] == pytest.approx(2 / 102)
    assert found["correlation"] == pytest.approx(torch.corrcoef(torch.stack([network, ode]))[0, 1].item())


def test_times_out_of_order_are_refused():
    with pytest.raises(ValueError, match="t_min"):
        ode_log_prob(mixture, mixture_draws(2), t_min=1.0, t_max=0.5, prior=gaussian_at_the_end())
