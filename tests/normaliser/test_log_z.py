"""log Z of energies whose constants are known (S28, S29, S31), and what is refused."""

import math

import pytest
import torch

import thalweg
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.rbm import RBMEnergy
from thalweg.normaliser.real import InCoordinates, check_tails
from thalweg.sampler.langevin import MALA, ULA

from ..statistical.densities import Banana, Funnel, LogGamma
from . import models

KNOWN = {
    "gaussian-50": models.gaussian,
    "mixture": lambda: models.analytic(GaussianMixture()),
    "banana": lambda: models.analytic(Banana()),
    "funnel": lambda: models.analytic(Funnel()),
    "log-gamma": lambda: models.analytic(LogGamma()),
    "network": models.network,
    "rbm-12x6": lambda: models.machine(12, 6, 1.0),
    "rbm-200x16": lambda: models.machine(200, 16, 0.5),
    "ising": models.ising,
    "potts": models.potts,
    "box": models.box,
}


def perceptron(seed):
    torch.manual_seed(seed)
    return MLPEnergy(shape=(2,))


def check(name, seed, **options):
    energy, shape, exact, _ = KNOWN[name]()
    support = "box" if name == "box" else "real"
    found = thalweg.log_z(energy, shape=shape, support=support, seed=seed, **options)
    assert abs(found.estimate - exact) <= 0.05
    assert found.low <= exact <= found.high
    assert abs(math.expm1(found.forward - exact)) < 5 * found.forward_error
    assert abs(math.expm1(exact - found.reverse)) < 5 * found.reverse_error
    assert found.high - found.low <= 2 * options["tolerance"]
    assert found.warning is None


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ("gaussian-50", "ising", "funnel")])
def test_the_constant_is_within_005_nats_and_inside_its_interval(name):
    """S28: |error| <= 0.05, the interval holds the exact value, and |mean(w / Z) - 1| < 5 standard errors."""
    check(name, 0, tolerance=0.09)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KNOWN)
def test_the_constant_of_all_models_over_seeds(name, seed):
    """The same at a smaller tolerance, where the slow models are among them."""
    check(name, seed, tolerance=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ("network", "box")])
def test_exact_draws_bound_the_constant_of_all_models(name):
    """S29 in its long form."""
    energy, shape, exact, draw = KNOWN[name]()
    found = thalweg.log_z(energy, shape=shape, samples=draw(512, generator(1, "exact")), num_steps=1000)
    assert found.forward - 5 * found.forward_error <= exact <= found.reverse + 5 * found.reverse_error
    assert abs(found.gap) <= 0.1


def test_exact_draws_bound_the_constant_from_above():
    """S29: inside [lower - 5 SE, upper + 5 SE], and a gap of 0.1 nats at most at K = 1000."""
    energy, shape, exact, draw = models.machine(12, 6, 1.0)
    samples = draw(256, generator(0, "exact"))
    found = thalweg.log_z(energy, shape=shape, samples=samples, num_steps=1000, num_chains=256)
    assert found.forward - 5 * found.forward_error <= exact <= found.reverse + 5 * found.reverse_error
    assert abs(found.gap) <= 0.1
    assert found.num_steps == 1000


def test_few_steps_on_a_hard_model_are_flagged():
    """S31: two far modes in 20 dimensions, with 5 levels; and with 1, where hardly a chain carries the weight."""
    means = 3 * torch.tensor([[1.0], [-1.0]]).expand(2, 20)
    energy = GaussianMixture(means, scale=0.5, weights=(0.7, 0.3))
    for num_steps in (5, 1):
        found = thalweg.log_z(energy, shape=(20,), num_steps=num_steps)
        assert found.warning is not None
        assert found.gap > 1 or found.ess < 51.2
        assert "[" in str(found)
        assert f"{found.low:.3f}, {found.high:.3f}" in str(found)
        assert found.warning in str(found)


def test_a_base_law_and_samples_of_the_caller_serve():
    energy = Gaussian.example()
    exact = float(energy.log_z)
    base = Gaussian((0.5, 0.0), ((2.0, 0.0), (0.0, 2.0)))
    with_base = thalweg.log_z(energy, shape=(2,), base=base)
    few = thalweg.log_z(energy, shape=(2,), samples=energy.draw(40, generator(0, "few")))
    for found in (with_base, few):
        assert found.low <= exact <= found.high
        assert abs(found.estimate - exact) < 0.1
    assert with_base != few


def test_a_seed_gives_one_answer_and_its_own_fields():
    energy = Gaussian.example()
    first, again, other = (thalweg.log_z(energy, shape=(2,), seed=seed, num_steps=20) for seed in (0, 0, 1))
    assert first == again != other
    assert first[:4] == (first.estimate, first.low, first.high, first.ess)
    assert isinstance(first, thalweg.LogZ)


def test_the_network_is_left_as_it_was():
    energy = models.network().energy
    energy.train().requires_grad_(True)
    with torch.inference_mode():
        thalweg.log_z(energy, shape=(2,), num_steps=5, num_chains=32)
    assert energy.training
    assert all(p.requires_grad and p.grad is None for p in energy.parameters())


@pytest.mark.parametrize(
    ("energy", "options", "argument"),
    [
        (lambda x: 0 * x.sum(1), {}, "energy"),  # flat: the integral does not exist
        (lambda x: x[:, 0].square() - x[:, 1], {}, "energy"),  # unbounded below along one axis
        (lambda x: -x.square().sum(1), {}, "energy"),
        (lambda x: x.sum(1), {}, "energy"),
        (perceptron(0), {}, "energy"),  # no tail of its own
        (perceptron(4), {}, "energy"),  # its chains run away faster and faster
        (lambda x: x.sum(1) * math.nan, {}, "energy"),
        (lambda x: x, {}, "energy"),
        (lambda x: x.sum(), {}, "energy"),
        (lambda x: 1.0, {}, "energy"),
        (torch.no_grad()(Gaussian()), {}, "energy"),  # no gradient in x
        (3, {}, "energy"),
        (Gaussian(), {"base": lambda x: x.square().sum(1)}, "base"),
        (Gaussian(), {"base": Gaussian((0.0,), ((1.0,),))}, "base"),  # of another shape
        (Gaussian(), {"sampler": ULA(step_size=0.1)}, "kernel"),
        (Gaussian(), {"sampler": MALA(step_size=0.1, temperature=2.0)}, "kernel.temperature"),
        (Gaussian(), {"support": "ball"}, "support"),
        (Gaussian(), {"samples": torch.zeros(5, 3)}, "samples"),
        (Gaussian(), {"samples": torch.zeros(1, 2)}, "samples"),  # no error can be told from one
        (RBMEnergy.example(), {"support": "box"}, "support"),
        (Gaussian(), {"start": torch.full((5, 2), math.nan)}, "start"),
        (Gaussian(), {"base": Gaussian(), "support": "box"}, "base"),
        (Gaussian(), {"num_steps": 0}, "num_steps"),
        (Gaussian(), {"tolerance": 0.0}, "tolerance"),
        (Gaussian(), {"num_chains": 1}, "num_chains"),
    ],
)
def test_what_has_no_constant_is_one_clear_error(energy, options, argument):
    with pytest.raises(UserError) as error:
        thalweg.log_z(energy, shape=(2,), **options)
    assert error.value.argument == argument


def test_a_curved_valley_that_a_ray_crosses_is_no_missing_tail():
    energy = Banana()
    factor = energy.covariance.sqrt()
    inside = InCoordinates(energy, (2,), torch.float64, energy.mean, factor, False)
    for seed in range(100):
        check_tails(inside, generator(seed, "rays"))


def test_a_mode_that_few_chains_reach_is_inside_the_interval():
    """Two modes, 8 deviations apart: at this seed the bootstrap of both passes ends 0.13 nats below the constant."""
    energy, shape, exact, _ = models.two_modes(4.0)
    found = thalweg.log_z(energy, shape=shape, seed=3, num_steps=128)
    assert found.reverse + 3 * found.reverse_error < exact
    assert found.low <= exact <= found.high


def test_a_mode_that_no_chain_finds_is_missing_from_both_passes():
    """Where the interval does not hold, as the docstring says; with exact draws it does."""
    energy, shape, exact, draw = models.two_modes(30.0)
    found = thalweg.log_z(energy, shape=shape)
    assert found.high < exact - 0.6
    informed = thalweg.log_z(energy, shape=shape, samples=draw(512, generator(0, "both")))
    assert informed.low <= exact <= informed.high
