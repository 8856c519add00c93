"""The constant of U(y, t) by paths over its noise levels, and its correction at the end of a run."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

import thalweg
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.normaliser.importance import importance_log_z
from thalweg.normaliser.noise_levels import noise_levels
from thalweg.run.constant import correct_constant


class Tilted:
    """Two modes in the plane at every noise level, with an error a cos(2 y_1) and a constant b at low noise."""

    t_min, t_max = 0.05**2, 6.0**2

    def __init__(self, a: float, b: float):
        self.a, self.b = a, b
        self.means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])

    def __call__(self, y, t):
        v = 0.1 + t
        log = -0.5 * (y[:, None] - self.means).square().sum(-1) / v[:, None] - torch.log(2 * 2 * math.pi * v)[:, None]
        error = self.a * torch.cos(2 * y[:, 0]) + self.b
        return -torch.logsumexp(log, 1) + (1 - t / self.t_max) * error

    def prior(self, n, generator):
        k = torch.randint(2, (n,), generator=generator)
        return self.means[k] + (0.1 + self.t_max) ** 0.5 * torch.randn(n, 2, generator=generator)

    def prior_log_prob(self, y):
        return -self(y, y.new_full((len(y),), self.t_max))


def on_grid(energy, t, half=4.0, n=400) -> float:
    """log of the integral of exp(-U(., t)) over a square, by the midpoint rule."""
    a = (torch.arange(n) + 0.5) * (2 * half / n) - half
    points = torch.cartesian_prod(a, a)
    with torch.no_grad():
        u = energy(points, torch.full((len(points),), t)).double()
    return float(torch.logsumexp(-u, 0)) + 2 * math.log(2 * half / n)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.3), (0.15, -0.2)])
def test_s28_paths_over_noise_levels_find_the_constant(a, b):
    """S28, S29. An error of the score does not bias them; the exact value lies in the interval, and both passes see it.

    Mutants: benchmarks/mutants/noise_levels.toml.
    """
    energy = Tilted(a, b)
    exact = on_grid(energy, energy.t_min)
    found = noise_levels(energy, num_chains=1024, num_steps=96)
    assert found.low < exact < found.high
    assert found.high - found.low < (0.3 if a else 0.1)
    assert found.ess > (0.3 if a else 0.8) * 1024
    assert found.warning is None
    for estimate in (found.estimate, found.forward, found.reverse):
        assert abs(estimate - exact) < 0.05


def test_s31_too_few_levels_widen_the_interval_and_warn():
    found = noise_levels(Tilted(0.0, 0.0), num_chains=64, num_steps=2)
    assert found.warning is not None or found.high - found.low > 0.5
    assert found.low < 0 < found.high


def test_an_energy_without_a_known_law_at_the_highest_level_is_refused():
    with pytest.raises(UserError) as caught:
        noise_levels(Gaussian.example())  # pyright: ignore[reportArgumentType]
    assert caught.value.argument == "energy"


def test_an_energy_that_falls_without_bound_has_no_constant():
    class Falling(Tilted):
        def __call__(self, y, t):
            return super().__call__(y, t) - (1 - t / self.t_max) * y[:, 0].pow(4)

    with pytest.raises(UserError) as caught:
        noise_levels(Falling(0.0, 0.0), num_chains=64, num_steps=32)
    assert caught.value.argument == "energy"


def test_importance_sampling_has_its_standard_error():
    """|z| < 5 in 200 repetitions of a narrower proposal; mutant: the ratio upside down."""
    law, energy = Gaussian((0.0, 0.0), ((1.2, 0.0), (0.0, 1.2))), Gaussian()
    scores, misses = [], 0
    for k in range(200):
        x = law.draw(400, generator(0, "draws", k))
        found = importance_log_z(energy(x), law(x) + law.log_z)
        scores.append((found.estimate - float(energy.log_z)) / ((found.high - found.low) / 6))
        misses += not found.low < float(energy.log_z) < found.high
    assert abs(torch.tensor(scores).mean()) < 5 / math.sqrt(200)
    assert 0.8 < torch.tensor(scores).std() < 1.2
    assert misses <= 4
    assert abs(importance_log_z(law(x) + law.log_z, energy(x)).estimate - float(energy.log_z)) > 0.5


def test_draws_of_the_mixture_follow_its_density():
    mixture = MixtureOfFactorAnalyzers.example()
    y = mixture.draw(4000, 0.3, generator(0, "draws"))
    t = torch.full((len(y),), 0.3, dtype=torch.float64)
    # E[exp(U(y) - U'(y))] = 1 for any other density exp(-U') that has no heavier tails
    other = Gaussian([0.0] * mixture.mean.numel(), (0.2 * torch.eye(mixture.mean.numel())).tolist())
    centred = y.flatten(1) - mixture.mean
    weight = (mixture(y, t) - other(centred) - other.log_z).exp()
    assert abs(float((weight.mean() - 1) / weight.std())) * math.sqrt(len(y)) < 5


def bundle_of(model, mixture, /, **more):
    stated = {"kind": "vector", "shape": (2,), "normalised": True, "config": {"run": {"seed": 0}}}
    return SimpleNamespace(**{"model": model, "mixture_prior": mixture, **stated, **more})


def test_a_wrong_constant_is_corrected_and_no_other():
    rows = GaussianMixture(scale=0.5).draw(2000, generator(0, "rows")).float()
    mixture = MixtureOfFactorAnalyzers.fit(rows)
    model = ResidualEnergy(shape=(2,), width=8, num_blocks=1, embed=8, sigma_min=0.05).fit(rows)
    model.shift(0.4)
    assert on_grid(model, model.t_min, 8.0) == pytest.approx(-0.4, abs=1e-3)
    at_top = model.prior_log_prob(rows)
    found = correct_constant(bundle_of(model, mixture), rows_seen=0)
    assert found is not None
    assert found["shift"] == pytest.approx(-0.4, abs=0.02)
    assert abs(on_grid(model, model.t_min, 8.0)) < max(0.01, found["within"])
    assert torch.equal(model.prior_log_prob(rows), at_top)
    for more in ({"normalised": False}, {"kind": "image"}, {"shape": (65,)}):
        assert correct_constant(bundle_of(model, mixture, **more), rows_seen=0) is None
    assert correct_constant(bundle_of(Gaussian(), mixture), rows_seen=0) is None


def test_a_mass_that_cannot_be_told_is_warned_of(caplog):
    """Mutant: a well away from the data, such as a network may dig where it was never trained."""
    rows = GaussianMixture(scale=0.5).draw(2000, generator(0, "rows")).float()
    mixture = MixtureOfFactorAnalyzers.fit(rows)

    class Well(ResidualEnergy):
        def forward(self, y, t):
            depth = 400 * (-2 * (y - 2.5).square().sum(1)).exp()
            return super().forward(y, t) - (1 - t / self.t_max) * depth

    model = Well(shape=(2,), width=8, num_blocks=1, embed=8, sigma_min=0.05).fit(rows)
    before = copy.deepcopy(model.state_dict())
    bundle = bundle_of(model, mixture, path="runs/well")
    found = correct_constant(bundle, rows_seen=10**7)
    assert found is not None
    assert set(found) == {"warning"}
    assert "runs/well" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert correct_constant(bundle, rows_seen=1000) is None


def test_s32_the_mass_of_a_short_run_in_the_plane_is_one():
    """Within .02 on a grid, after a training too short to learn it; mutant: no correction."""
    bundle = thalweg.train("dual", "two-moons", steps=300, progress=False, settings={"batch_size": 64})
    assert abs(math.expm1(on_grid(bundle.model, bundle.t_min, 6.0, 600))) < 0.02
    assert abs(bundle.config["constant"]["shift"]) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("data", ["two-moons", "eight-gaussians"])
def test_s32_the_mass_of_a_run_of_two_minutes_is_one(data):
    bundle = thalweg.train("dual", data, steps=6000, progress=False)
    assert abs(math.expm1(on_grid(bundle.model, bundle.t_min, 6.0, 900))) < 0.005
