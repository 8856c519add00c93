"""The recipe toy2d from the command's request to a bundle, its samples and its figures."""

import copy
import json
import math

import pytest
import torch

import thalweg
from thalweg.core import store
from thalweg.core.errors import DamagedFile, NotNormalised, UserError
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


def test_its_constant_is_estimated_stored_and_answers(bundle, tmp_path):
    """log Z with an interval that holds the integral on a grid; kept in the folder, sealed, and read again."""
    with pytest.raises(NotNormalised):
        bundle.log_prob(torch.zeros(1, 2))
    bundle.save_pretrained(tmp_path / "run")
    run = thalweg.load(tmp_path / "run")
    assert run.log_z(store=False) == (found := run.log_z())
    line = torch.linspace(-6, 6, 601)
    points = torch.cartesian_prod(line, line)
    exact = float(torch.logsumexp(-run.energy(points).double(), 0)) + 2 * math.log(12 / 600)
    assert found.low <= exact <= found.high
    assert found.warning is None
    again = thalweg.load(tmp_path / "run")  # hashes are verified
    x = TOYS["two-moons"].sample(20, torch.Generator().manual_seed(0))
    log_p, scores = again.log_prob(x), again.score(x)
    assert torch.allclose(log_p.estimate, -bundle.energy(x) - found.estimate)
    assert torch.allclose(log_p.high - log_p.low, torch.tensor(found.high - found.low), atol=1e-5)
    assert bool((log_p.low <= log_p.estimate).all() & (log_p.estimate <= log_p.high).all())
    for name, value in zip(("log_prob", "log_prob_low", "log_prob_high"), log_p, strict=True):
        assert torch.equal(scores[name], value)
    again.save_pretrained(tmp_path / "copy")
    assert torch.equal(thalweg.load(tmp_path / "copy").log_prob(x).low, log_p.low)
    assert "log_z" not in bundle.config
    assert store.verify(tmp_path / "copy")


def test_the_command_reports_the_likelihood_with_the_interval(bundle, call, tmp_path):
    bundle.save_pretrained(tmp_path / "run")
    code, figures, said = call("evaluate", tmp_path / "run", "-n", "20", "--log-z", "--json")
    assert code == 0
    row = figures["likelihood"]
    assert row["nats_low"] < row["nats"] < row["nats_high"]
    assert f"{row['nats_low']:.2f} to {row['nats_high']:.2f}" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert any("log Z" in line and "ESS" in line for line in said)


def test_rows_outside_the_box_leave_no_likelihood_to_report(bundle, call, caplog, tmp_path):
    bundle.save_pretrained(tmp_path / "run")
    thalweg.load(tmp_path / "run").log_z(support="box", num_steps=5)  # two moons are wider
    code, figures, _ = call("evaluate", tmp_path / "run", "-n", "20", "--json")
    assert code == 0
    assert figures["likelihood"] is None
    assert "outside the box" in caplog.text


def test_a_temperature_divides_the_energy_and_a_clamp_bounds_the_integral(bundle, tmp_path):
    """exp(-E / T) on the box of the clamp, in data units, by a grid."""
    other = copy.copy(bundle)
    other.sampler = ULA(step_size=0.01, temperature=2.0, clamp=(-1.0, 1.5))
    other.path = tmp_path  # where no run is
    found = other.log_z()
    low, high = (other.decode(torch.full((1, 2), edge))[0] for edge in (-1.0, 1.5))
    line = (torch.arange(400) + 0.5) / 400
    inside = low + torch.cartesian_prod(line, line) * (high - low)
    u = other.energy(inside).double() / 2
    exact = float(torch.logsumexp(-u, 0) + ((high - low) / 400).log().sum())
    assert found.low <= exact <= found.high
    mass = (other.log_prob(inside).estimate.double().exp() * ((high - low) / 400).prod()).sum()
    assert abs(float(mass.log()) - (exact - found.estimate)) < 1e-3
    outside = torch.stack([low - 0.1, high + 0.1, torch.stack([low[0] - 0.1, high[1]])])
    assert bool((other.log_prob(outside).high == -math.inf).all())
    assert bool((other.score(outside)["log_prob"] == -math.inf).all())
    assert bool(other.log_prob(torch.stack([low, high])).low.isfinite().all())  # walls belong to the box
    other.sampler = ULA(step_size=0.01, temperature=0.0)
    with pytest.raises(UserError) as error:
        other.log_z()
    assert error.value.argument == "sampler.temperature"


@pytest.mark.parametrize("change", [{"estimate": None}, {"temperature": 0}, {"low": "x"}])
def test_a_damaged_constant_is_found(bundle, change, tmp_path):
    other = copy.copy(bundle)
    other.path = tmp_path  # where no run is
    other.log_z(num_steps=5)
    other.config = {**other.config, "log_z": {**other.config["log_z"], **change}}
    with pytest.raises(DamagedFile):
        other.log_prob(torch.zeros(1, 2))
