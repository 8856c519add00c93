"""The chains of an evaluation: whether they agree, what they say where they fail, and the bias of ULA (S15)."""

import json

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.evaluate import chains
from thalweg.evaluate.chains import chain_figures
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.schedule import Linear

ROUND = Gaussian((0.0, 0.0), ((1.0, 0.0), (0.0, 1.0)))


@pytest.fixture(autouse=True)
def lengths(monkeypatch):
    monkeypatch.setattr(chains, "WARM_UP", 50)
    monkeypatch.setattr(chains, "NUM_DRAWS", 250)


def starts(*shape):
    return torch.randn(16, *shape, generator=generator(0, "starts"), dtype=torch.float64)


def figures(sampler, energy, *shape):
    found = chain_figures(sampler, energy, starts(*shape))
    json.dumps(found, allow_nan=False)
    return found


def test_chains_that_agree():
    found = figures(MALA(step_size=0.7), ROUND, 2)
    assert found["agree"]
    assert found["adjusted"]
    assert "bias" not in found
    assert [row["quantity"] for row in found["rows"]] == ["energy", "coordinate 1", "coordinate 2"]
    assert all(row["r_hat"] < 1.01 and row["ess_bulk"] >= 400 for row in found["rows"])
    assert 0.5 < found["acceptance"] < 0.95


def test_modes_that_chains_do_not_leave_are_seen():
    found = figures(MALA(step_size=0.05), GaussianMixture(scale=0.3), 2)
    assert not found["agree"]
    assert max(row["r_hat"] for row in found["rows"]) > 1.1


@pytest.mark.parametrize("h", [0.5, Linear(first=1.0, last=0.5, num_steps=40)], ids=["constant", "schedule"])
def test_s15_the_bias_is_that_of_the_formula(h):
    """ULA samples variance 1 / (1 - h / 2): its mean energy is 1 / (1 - h / 2) in place of 1 in the plane."""
    bias = figures(ULA(step_size=h), ROUND, 2)["bias"]
    assert bias["mean_energy_error"] < 0.1
    assert abs(bias["mean_energy"] - (1 / (1 - 0.5 / 2) - 1)) < 5 * bias["mean_energy_error"]
    assert bias["mean_energy"] > 2 * bias["mean_energy_error"], "a comparison that sees nothing"
    assert 0.8 < bias["metropolis_acceptance"] < 0.99


def test_a_step_that_a_test_never_accepts_has_no_known_bias():
    found = figures(ULA(step_size=1.9), Gaussian((0.0,) * 8, torch.eye(8).tolist()), 8)
    assert found["bias"]["mean_energy"] is None
    assert found["bias"]["metropolis_acceptance"] < 0.1
    assert figures(ULA(step_size=0.1, temperature=0.0), ROUND, 2)["bias"] is None


def test_chains_that_diverge_are_said_to():
    found = figures(ULA(step_size=1.0), lambda x: 10 * (x**4).sum(1), 2)
    assert found["num_diverged"] == 16
    assert not found["agree"]
    assert "bias" not in found
    assert found["rows"][0]["r_hat"] is None


def test_a_chain_that_is_not_finite_at_some_steps_has_left_the_finite_range():
    def holed(x):
        return torch.where(x[:, 0] > 2.5, float("inf"), 0.5 * x.square().sum(1))

    found = figures(ULA(step_size=0.5), holed, 2)
    assert 1 <= found["num_diverged"] <= 16
    assert "finite range" in found["sentence"]
    assert found["rows"][0]["r_hat"] is None


def test_chains_that_stay_are_said_to():
    """Each where it began: constant along the chain, though chains differ."""
    found = figures(MALA(step_size=1e4), lambda x: 1e4 * x.square().sum(1), 2)
    assert found["acceptance"] < 1e-6
    assert not found["agree"]
    assert "do not move" in found["sentence"]
    flat = figures(MALA(step_size=0.1), lambda x: 0 * x.square().sum(1), 2)
    assert "energy" in flat["sentence"], "a quantity that is constant where chains move"
    assert not flat["agree"]


def test_images_have_projections():
    found = figures(ULA(step_size=0.1), lambda x: 0.5 * x.square().flatten(1).sum(1), 1, 5, 5)
    assert [row["quantity"] for row in found["rows"]] == ["energy", *(f"projection {k}" for k in (1, 2, 3, 4))]
    assert found["rows"][1]["mcse_sd"] < 0.2, "a unit direction of a standard normal law has deviation 1"
