"""The recipe toy2d from the command's request to a bundle, its samples and its figures."""

import json

import pytest
import torch

from thalweg.data.toy import TOYS
from thalweg.evaluate.chains import chain_figures
from thalweg.evaluate.report import write_figures, write_report
from thalweg.evaluate.suite import evaluate_bundle
from thalweg.run.fit import Request, fit, settings
from thalweg.sampler.langevin import ULA


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    request = Request(data="two-moons", recipe="toy2d", steps=30)
    return fit(request, tmp_path_factory.mktemp("toy2d") / "run", tensorboard=False)


def test_toy2d_trains_and_gives_a_bundle(bundle):
    assert bundle.config["training"]["steps"] == 30
    assert bundle.config["run"]["objective"]["energy_penalty"] > 0, "energies are held near zero by default"
    assert not bundle.normalised
    x = bundle.sample(150, num_steps=5)
    assert x.shape == (150, 2)
    assert x.isfinite().all()
    far = bundle.energy(torch.tensor([[50.0, -50.0]]))
    rows = TOYS["two-moons"].sample(200, torch.Generator().manual_seed(0))
    assert bool((far > 100 + bundle.energy(rows).max()).all()), "the energy does not confine"


def test_its_evaluation_has_the_discrepancies(bundle):
    x = TOYS["two-moons"].sample(300, torch.Generator().manual_seed(0))
    figures = evaluate_bundle(bundle, train=x[:200], held_out=x[200:], num_samples=100, num_ode=0).figures
    for name in ("samples", "real", "gaussian", "uniform"):
        assert {"mmd2", "mmd2_multi", "precision", "recall"} <= set(figures["quality"][name])
    assert figures["chains"]["sampler"] == "MALA"
    assert figures["chains"]["adjusted"]


def test_a_report_says_whether_chains_agree_and_that_ula_is_biased(bundle, tmp_path):
    sampler, energy, z = bundle.chains(16, seed=1)
    assert sampler == bundle.sampler
    found = chain_figures(ULA(step_size=0.02), energy, z)
    x = TOYS["two-moons"].sample(300, torch.Generator().manual_seed(0))
    figures = evaluate_bundle(bundle, train=x[:200], held_out=x[200:], num_samples=20, num_ode=0).figures
    figures["chains"] = found
    write_figures(tmp_path / "evaluation.json", figures)
    assert json.loads((tmp_path / "evaluation.json").read_text())["chains"] == found
    page = write_report(tmp_path / "report.html", title="x", command="y", figures=figures, pictures={}).read_text()
    assert "Do the chains agree?" in page
    assert "coordinate 2" in page
    assert "no Metropolis test" in page


def test_its_budget_is_in_steps():
    run = settings(Request(data="two-moons", recipe="toy2d"), "vector")
    assert (run.train.steps, run.train.minutes) == (10_000, None)
