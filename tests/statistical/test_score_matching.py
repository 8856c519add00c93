"""Score matching against what is known in closed form for Gaussians; every check rejects a named mutant."""

import inspect
import itertools
import math
import sys
import types

import pytest
import torch
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.objective.base import Batch
from thalweg.objective.score import score
from thalweg.objective.score.derivatives import DerivativeChoice

D = 5
LOWER = torch.tril_indices(D, D)


def mutant(module, old, new):
    """The module with one piece of its source replaced."""
    source = inspect.getsource(module)
    assert old in source, old
    made = types.ModuleType(f"mutant_of_{module.__name__.rpartition('.')[2]}")
    sys.modules[made.__name__] = made
    exec(compile(source.replace(old, new), made.__name__, "exec"), made.__dict__)
    return made


class Quadratic(nn.Module):
    """1/2 x'Px - b'x, P symmetric by its lower triangle: every loss of its slope is quadratic in (P, b)."""

    def __init__(self, precision, b):
        super().__init__()
        self.lower = nn.Parameter(precision[LOWER[0], LOWER[1]].clone())
        self.b = nn.Parameter(b.clone())

    def precision(self):
        p = self.lower.new_zeros(D, D).index_put(tuple(LOWER), self.lower)
        return p + p.tril(-1).T

    def forward(self, x, t=None):
        return (0.5 * (x @ self.precision() * x).sum(1) - x @ self.b).double()


def population():
    """(mean, covariance) of a 5-D Gaussian of condition number 16."""
    g = generator(1, "population")
    basis = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64))[0]
    spectrum = torch.logspace(-0.6, 0.6, D, base=10, dtype=torch.float64)
    return torch.randn(D, generator=g, dtype=torch.float64), basis * spectrum @ basis.T


def sample(n, seed=0):
    mean, covariance = population()
    z = torch.randn(n, D, generator=generator(seed, "sample"), dtype=torch.float64)
    return mean + z @ torch.linalg.cholesky(covariance).T


def gaussian(mean, covariance):
    precision = torch.linalg.inv(covariance)
    return Quadratic(precision, precision @ mean)


def gradient(objective, energy, x, noise):
    loss, _, _ = objective.loss(energy, DerivativeChoice(), Batch(x), noise)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(energy.parameters()))])


def optimum(objective, x, noise):
    """The minimiser in (P, b): the gradient is affine, so one gradient a parameter solves for it."""
    num = len(LOWER[0]) + D
    at = lambda theta: gradient(objective, _of(theta), x, noise)  # noqa: E731
    origin = at(torch.zeros(num, dtype=torch.float64))
    hessian = torch.stack([at(e) - origin for e in torch.eye(num, dtype=torch.float64)], 1)
    return _of(torch.linalg.solve(hessian, -origin)).precision().detach()


def _of(theta):
    energy = Quadratic(torch.eye(D, dtype=torch.float64), theta[-D:])
    energy.lower.data = theta[:-D].clone()
    return energy


def z_scores(objective, energy, x, noise, blocks=100):
    """The mean gradient over its own error bar, from independent blocks of rows."""
    parts = [
        gradient(objective, energy, rows, pieces)
        for rows, *pieces in zip(x.chunk(blocks), *(v.chunk(blocks, -2) for v in noise), strict=True)
    ]
    g = torch.stack(parts)
    return g.mean(0) / (g.std(0) / blocks**0.5)


# S2: for a Gaussian, score matching is maximum likelihood (Hyvarinen 2005)


def slope_at_sample_mle(module):
    x = sample(2000)
    energy = gaussian(x.mean(0), x.T.cov(correction=0))
    return gradient(module.ExplicitScoreMatching(), energy, x, ()).abs().max()


def test_explicit_is_stationary_at_the_sample_mle():
    assert slope_at_sample_mle(score) <= 1e-10
    assert slope_at_sample_mle(mutant(score, ".sum(1) - trace)", ".sum(1) + trace)")) > 0.1
    assert slope_at_sample_mle(mutant(score, "0.5 * g.flatten", "g.flatten")) > 0.1


# S3: all signs together are the exact trace


def sliced_error(module):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    energy = lambda x: net(x).squeeze(1)  # noqa: E731
    x = sample(32)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)), dtype=torch.float64)
    probes = signs[:, None, :].expand(-1, len(x), -1)
    sliced, _, _ = module.SlicedScoreMatching().loss(energy, DerivativeChoice(), Batch(x), (probes,))
    exact, _, _ = score.ExplicitScoreMatching().loss(energy, DerivativeChoice(), Batch(x), ())
    return (sliced / exact - 1).abs()


def test_all_signs_together_are_the_exact_trace():
    assert sliced_error(score) <= 1e-10
    assert sliced_error(mutant(score, "x, v) * v)", "x, v) * v.abs())")) > 1e-3


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_probes_are_white(probe):
    n = 20_000
    x = torch.zeros(n, 3, dtype=torch.float64)
    sliced = score.SlicedScoreMatching(probe=probe, num_projections=2)
    (v,) = sliced.draw(DerivativeChoice(), Batch(x), generator(0, "v"), 0.0)
    assert v.shape == (2, n, 3)
    flat = v.reshape(-1, 3)
    assert ((flat.T @ flat / len(flat) - torch.eye(3)).abs() < 5 * 2**0.5 / len(flat) ** 0.5).all()
    assert (flat.abs() == 1).all() == (probe == "rademacher")


# S24: the precision is the estimator's own optimum


def antithetic(x, repeats, seed=0):
    """(x repeated, eps): each eps beside its negative, which cancels the cross terms x eps'."""
    eps = torch.randn(repeats, *x.shape, generator=generator(seed, "eps"), dtype=torch.float64)
    return x.repeat(2 * repeats, 1), torch.cat([eps, -eps]).flatten(0, 1)


def denoising_error(module, sigma=0.5):
    x, eps = antithetic(sample(20_000), 4)
    found = optimum(module.DenoisingScoreMatching(sigma=sigma), x, (eps,))
    blurred = x.T.cov(correction=0) + sigma**2 * torch.eye(D)
    want = torch.linalg.inv(blurred)
    return (found - want).norm() / want.norm()


def test_denoising_finds_the_blurred_precision():
    assert denoising_error(score) <= 0.01
    assert denoising_error(mutant(score, "(slope - eps)", "(slope + eps)")) > 0.1
    assert denoising_error(mutant(score, " self.sigma,\n", " self.sigma**2,\n")) > 0.1


def denoising_z(module, sigma):
    mean, covariance = population()
    energy = gaussian(mean, covariance + sigma**2 * torch.eye(D))
    eps = torch.randn(20_000, D, generator=generator(2, "eps"), dtype=torch.float64)
    return z_scores(module.DenoisingScoreMatching(sigma=sigma), energy, sample(20_000, 2), (eps,)).abs().max()


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_denoising_gradient_vanishes_at_the_blurred_law(sigma):
    assert denoising_z(score, sigma) < 5
    assert denoising_z(mutant(score, "(slope - eps)", "(slope + eps)"), sigma) > 10
    assert denoising_z(mutant(score, " self.sigma,\n", " self.sigma**2,\n"), sigma) > 10


def test_explicit_and_sliced_find_the_precision():
    x = sample(20_000)
    want = torch.linalg.inv(x.T.cov(correction=0))
    assert (optimum(score.ExplicitScoreMatching(), x, ()) - want).norm() / want.norm() <= 1e-9
    sliced = score.SlicedScoreMatching(num_projections=16)
    noise = sliced.draw(DerivativeChoice(), Batch(x), generator(0, "v"), 0.0)
    assert (optimum(sliced, x, noise) - want).norm() / want.norm() <= 0.01


def test_sliced_gradient_vanishes_at_the_true_law():
    x, energy = sample(20_000, 3), gaussian(*population())
    noise = score.SlicedScoreMatching().draw(DerivativeChoice(), Batch(x), generator(0, "v"), 0.0)
    assert z_scores(score.SlicedScoreMatching(), energy, x, noise).abs().max() < 5
    flipped = mutant(score, ".sum(1) - trace)", ".sum(1) + trace)").SlicedScoreMatching()
    assert z_scores(flipped, energy, x, noise).abs().max() > 10


# Many noise levels at once


class Blurred(nn.Module):
    """U(y, t) = 1/2 (y - m)'(C + t I)^-1 (y - m): the exact energy of blurred Gaussian data."""

    t_min, t_max = 0.1**2, 3.0**2

    def __init__(self, mean, covariance):
        super().__init__()
        self.mean, self.covariance = nn.Parameter(mean.clone()), nn.Parameter(covariance.clone())

    def forward(self, y, t):
        total = self.covariance + t.double()[:, None, None] * torch.eye(D)
        r = y - self.mean
        return 0.5 * (r * torch.linalg.solve(total, r[..., None]).squeeze(-1)).sum(1)


def multi_scale_z(module):
    objective = module.MultiScaleDenoising()
    energy, parts = Blurred(*population()), []
    state = objective.init(energy, sample(2), generator(0, "init"))
    for k, x in enumerate(sample(20_000, 4).chunk(100)):
        noise = objective.draw(state, Batch(x), generator(0, "draw", k), 0.0)
        parts.append(gradient(objective, energy, x, noise))
    g = torch.stack(parts)
    return (g.mean(0) / (g.std(0) / 10)).abs().max()


def test_many_levels_share_the_true_optimum():
    assert multi_scale_z(score) < 5
    assert multi_scale_z(mutant(score, "(slope - eps)", "(slope + eps)")) > 10
    assert multi_scale_z(mutant(score, "per_row(t.sqrt(), eps)", "per_row(t, eps)")) > 10


def test_settings_are_checked():
    for make, name, value in (
        (score.DenoisingScoreMatching, "sigma", 0.0),
        (score.DenoisingScoreMatching, "sigma", math.inf),
        (score.SlicedScoreMatching, "num_projections", 0),
        (score.SlicedScoreMatching, "probe", "uniform"),
    ):
        with pytest.raises(UserError) as caught:
            make(**{name: value})
        assert caught.value.argument == name


def test_a_compiled_denoising_loss_has_the_same_gradient():
    energy, x = gaussian(*population()), sample(16)
    eps = torch.randn(16, D, generator=generator(0, "eps"), dtype=torch.float64)
    loss = lambda x, eps: score.DenoisingScoreMatching().loss(energy, DerivativeChoice(), Batch(x), (eps,))[0]  # noqa: E731
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    parameters = list(energy.parameters())
    for a, b in zip(*(torch.autograd.grad(f(x, eps), parameters) for f in (loss, compiled)), strict=True):
        torch.testing.assert_close(a, b)
