"""S30: RAISE bounds the log-likelihood from below on average, annealing to log Z from above; both with mutants."""

import math

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian
from thalweg.normaliser import raise_bound
from thalweg.normaliser.log_z import log_z

from .machines import log_law, machine
from .test_learning import exact_draws
from .test_score_matching import mutant

NUM_SEEDS = 20


def model():
    """12 visible and 8 hidden units, joined so strongly that a few levels do not suffice."""
    return machine((12,), 8, seed=3, scale=3.0)


def excess(module=raise_bound, num_steps=20, num_seeds=NUM_SEEDS):
    """(mean over seeds of bound - exact log-likelihood, its standard error), nats; fresh draws of the model a seed."""
    energy, found = model(), []
    for seed in range(num_seeds):
        x = exact_draws(energy, 40, 30 + seed)
        bound = module.raise_bound(energy, x, seed=seed, num_chains=4, num_steps=num_steps)
        found.append(bound.mean + (energy(x).mean() + energy.log_z()).item())
    d = torch.tensor(found)
    return d.mean().item(), (d.std() / num_seeds**0.5).item()


def test_s30_raise_is_a_lower_bound():
    """S30: below exact + 5 SE over 20 seeds; a fraction of a nat below it, and nearer with more levels."""
    few, few_error = excess(num_steps=1)
    many, error = excess()
    assert many < 5 * error
    assert few < -5 * few_error, "one level is too little: the bound must show it"
    assert few < many - 0.05
    assert many > -0.5


@pytest.mark.parametrize(
    "change",
    [
        ("log_mean(row)) for", "log_mean(-row)) for"),
        (" - path.log_z", ""),
        ("path.energy(path.num_levels)(x)", "path.energy(0)(x)"),
    ],
    ids=["weights reversed", "the prior's constant forgotten", "the energy of the prior"],
)
def test_s30_rejects_mutants(change):
    mean, error = excess(mutant(raise_bound, *change), num_seeds=4)
    assert not -0.5 < mean < 5 * error


def test_s30_annealing_overstates_and_warns():
    """S30: the forward estimate of log Z is too low on average; the tool says where few chains carry the weight."""
    energy = machine((12,), 8, seed=3, scale=4.0)
    with torch.no_grad():
        exact = energy.log_z().item()
    found = [log_z(energy, shape=(12,), seed=seed, num_chains=64, num_steps=2) for seed in range(NUM_SEEDS)]
    low = torch.tensor([value.forward - exact for value in found])
    assert low.mean() < 5 * low.std() / NUM_SEEDS**0.5
    assert low.mean() < 0
    few = [value for value in found if value.ess < 0.1 * value.num_chains]
    assert few, "the machine must be hard"
    assert all(value.warning is not None for value in few)


def test_a_bound_is_shown_with_its_error():
    energy = model()
    bound = raise_bound.raise_bound(energy, exact_draws(energy, 5, 1), num_chains=2, num_steps=2)
    assert bound.log_prob.shape == (5,)
    assert "+-" in str(bound)
    assert math.isfinite(bound.error)
    assert float(log_law(energy).max()) < 0


def test_only_energies_of_states_are_taken():
    with pytest.raises(UserError) as caught:
        raise_bound.raise_bound(Gaussian(), torch.zeros(3, 2))
    assert caught.value.argument == "energy"
    with pytest.raises(UserError) as caught:
        raise_bound.raise_bound(model(), torch.rand(3, 12, generator=generator(0, "x")), num_steps=0)
    assert caught.value.argument == "num_steps"
