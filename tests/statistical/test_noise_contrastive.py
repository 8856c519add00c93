"""S25: noise-contrastive estimation finds a Gaussian and its constant; bundles of it give log p."""

import functools
import math

import pytest
import torch
from torch import nn

import thalweg
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.transform import Identity
from thalweg.energy.analytic import Gaussian
from thalweg.energy.networks.tilted_gaussian import TiltedGaussianEnergy
from thalweg.energy.with_constant import WithConstantEnergy
from thalweg.objective import noise_contrastive
from thalweg.objective.base import Batch
from thalweg.objective.noise_contrastive import NoiseContrastive

from .scripts import script
from .test_score_matching import D, Quadratic, mutant, population

NUM_DRAWS = 100_000


def law():
    mean, covariance = population()
    return Gaussian(mean, (covariance + covariance.T) / 2)


@functools.cache
def draws():
    return law().draw(NUM_DRAWS, generator(25, "draws"))


def found(objective, x, num_small=4_000):
    """The quadratic energy with a constant that has the smallest loss on x and one set of noise rows.

    By Newton's method from a precision that is 30 % too large; the Hessian is of the first rows, the gradient of all.
    """
    start = 1.3 * torch.linalg.inv(x.T.cov())
    energy = WithConstantEnergy(network=Quadratic(start, start @ x.mean(0)), shape=(D,)).double().fit(x)
    state, parameters = objective.init(energy, x, generator(25, "init")), list(energy.parameters())
    (y,) = objective.draw(state, Batch(x), generator(25, "noise"), 0.0)
    noise = y.chunk(objective.ratio)  # a part of the noise for each of the first rows

    def gradient(n, graph=False):
        loss = objective.loss(energy, state, Batch(x[:n]), (torch.cat([part[:n] for part in noise]),))[0]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=graph)])

    for _ in range(7):
        few = gradient(num_small, graph=True)
        rows = (torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in few)
        hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        step = torch.linalg.solve(hessian, gradient(len(x)))
        with torch.no_grad():
            for p, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
                p -= part.reshape(p.shape)
    return energy


def errors(module=noise_contrastive, n=NUM_DRAWS, **settings):
    """(|constant - the model's own log Z| in nats, relative error of the precision)."""
    try:
        energy = found(module.NoiseContrastive(**settings), draws()[:n])
    except torch.linalg.LinAlgError:  # a loss without a minimum
        return math.inf, math.inf
    with torch.no_grad():
        precision, b = energy.inner.precision(), energy.inner.b
        own = 0.5 * (D * math.log(2 * math.pi) - precision.logdet() + b @ torch.linalg.solve(precision, b))
        want = torch.linalg.inv(population()[1])
        return (energy.constant - own).abs().item(), ((precision - want).norm() / want.norm()).item()


def test_s25_the_constant_is_learned():
    """S25: 1e5 draws in 5-D; constant within 0.005 nats of the model's own log Z, precision within 2 %."""
    constant, precision = errors()
    assert constant <= 0.005
    assert precision <= 0.02


def test_a_law_of_the_callers_does_too():
    """Three noise rows a row of data, from a wider Gaussian; fewer draws, so wider bars."""
    wider = Gaussian(law().mean, 2 * law().covariance)
    constant, precision = errors(n=10_000, noise=wider, ratio=3)
    assert constant <= 0.03
    assert precision <= 0.06


@pytest.mark.parametrize(
    "change",
    [
        ("softplus(-real)", "softplus(real)"),
        ("log_odds = -u - self", "log_odds = -u + self"),
        (" - math.log(self.ratio)", ""),
        ("loss = softplus(-real).mean() + self.ratio *", "loss = softplus(-real).mean() +"),
        ("state.spectrum).log().sum()", "state.spectrum).sqrt().log().sum()"),
    ],
    ids=["sign", "ratio swapped", "nu forgotten in the odds", "nu forgotten in the mean", "wrong density"],
)
def test_s25_rejects_mutants(change):
    constant, _ = errors(mutant(noise_contrastive, *change), n=5_000, ratio=2)
    assert not constant <= 0.1


def test_log_noise_is_the_density_of_the_draws():
    """The fitted Gaussian's stated density is that of its draws: E[p / q] = 1 for another Gaussian p."""
    x = draws()[:4096]
    nce = NoiseContrastive(widening=1.3)
    state = nce.init(lambda x: x.sum(1), x, generator(0, "init"))
    (y,) = nce.draw(state, Batch(draws()), generator(0, "noise"), 0.0)
    log_p = -law()(y) - law().log_z
    weight = (log_p - nce._log_noise(state, law())(y)).exp()
    assert abs(weight.mean() - 1).item() < 5 * (weight.std() / NUM_DRAWS**0.5).item()


class Net(nn.Module):
    """A user's network without a constant of its own: |W (x - m)|² / 2."""

    def __init__(self):
        super().__init__()
        self.weight, self.mean = nn.Parameter(torch.eye(2)), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return 0.5 * ((x - self.mean) @ self.weight).square().sum(1)


def test_a_given_network_gets_a_constant_and_its_bundle_log_p(tmp_path):
    """Through `thalweg.train`, its folder and `load`: exp(log p) integrates to 1 within 2 %, before it did to 0.5."""
    x = torch.randn(2000, 2, generator=generator(0, "x")) @ torch.tensor([[0.5, 0.3], [0.0, 0.4]]) + 0.5
    settings = {"batch_size": 256, "learning_rate": 3e-2, "precision": "fp32", "ema": 0.95, "log_every": 100}
    bundle = thalweg.train(
        Net(),
        x,
        objective=NoiseContrastive(ratio=2),
        transform=Identity(),
        steps=300,
        out=tmp_path / "run",
        settings=settings,
    )
    assert bundle.normalised
    axis = torch.linspace(-3, 4, 141)
    grid = torch.cartesian_prod(axis, axis)
    assert (bundle.log_prob(grid).exp().sum() * 0.05**2).item() == pytest.approx(1, abs=0.02)
    want = Gaussian(x.mean(0).double(), x.T.double().cov())
    assert (bundle.log_prob(x) + want(x) + want.log_z).abs().mean() < 0.1
    again = thalweg.load(tmp_path / "run", energy=Net())
    assert torch.equal(again.log_prob(grid[:100]), bundle.log_prob(grid[:100]))


def test_the_constant_begins_at_the_level_of_a_gaussian():
    x = draws()[:2000].float()
    energy = WithConstantEnergy(network=TiltedGaussianEnergy(shape=(D,)), shape=(D,)).fit(x)
    assert energy(x).mean().item() == pytest.approx((law()(x) + law().log_z).mean().item(), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "bar"), [("eight-gaussians", 0.01), ("two-moons", 0.01), ("checkerboard", 0.1)])
def test_s26_a_network_in_the_plane(name, bar, seed):
    """S26: normalised on a grid, KL(data || model) below the set's bar and within 0.02 nats of exact gradients."""
    planar = script("planar")
    found = planar.one("nce", name, 4000, seed)
    assert found["kl"] <= bar
    assert abs(found["log_z"]) <= 0.02, "the learned constant"
    assert found["kl"] - planar.one("exact", name, 4000, seed)["kl"] <= 0.02


@pytest.mark.parametrize(
    ("wrong", "argument"), [({"ratio": 0}, "ratio"), ({"widening": 0.0}, "widening"), ({"noise": len}, "noise")]
)
def test_settings_are_checked(wrong, argument):
    with pytest.raises(UserError) as caught:
        NoiseContrastive(**wrong)
    assert caught.value.argument == argument


def test_the_noise_of_larger_images_is_a_gaussian_without_a_dense_matrix() -> None:
    """Its log-density is that of its dense covariance; the draws have it. The state takes K² numbers, not D²."""
    shape, widening = (3, 23, 23), 1.5
    size = math.prod(shape)
    x = torch.randn(80, *shape, generator=generator(25, "images")).double().cumsum(3).cumsum(2)
    objective = NoiseContrastive(widening=widening)
    state = objective.init(lambda x: x.flatten(1).sum(1), x, generator(25, "init"))
    assert isinstance(state, noise_contrastive.StationaryNoise)
    assert sum(part.numel() for part in state) < size**2 / 2
    (y,) = objective.draw(state, Batch(x), generator(25, "noise"), 0.0)
    assert y.shape == x.shape
    law = noise_contrastive._stationary(state, x)
    basis = law.combination(torch.eye(size).double())  # row i is column i of V
    covariance = basis.T @ (state.spectrum[:, None] * basis)
    dense = torch.distributions.MultivariateNormal(state.mean, covariance)
    log_q = objective._log_noise(state, lambda x: x)
    torch.testing.assert_close(log_q(y), dense.log_prob(y.flatten(1)), rtol=1e-6, atol=1e-4)
    whitened = law.coordinates(y.flatten(1) - state.mean) / state.spectrum.sqrt()
    assert abs(float(whitened.square().mean()) - 1) < 5 * math.sqrt(2 / whitened.numel())
