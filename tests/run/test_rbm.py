"""The recipe rbm from the command's request to a bundle, its samples and its exact likelihood."""

import copy
import math

import pytest
import torch

import thalweg
from thalweg.core.errors import UserError
from thalweg.data.catalog import Dataset
from thalweg.data.transform import Binarize, Transform
from thalweg.energy.enumeration import all_states
from thalweg.evaluate.report import write_report
from thalweg.evaluate.states import likelihood_of_states
from thalweg.evaluate.suite import evaluate_bundle
from thalweg.normaliser.estimate import LogZ
from thalweg.run.fit import Request, fit_with_data
from thalweg.sampler.gibbs_with_gradients import GibbsWithGradients

QUICK = ["energy.num_hidden=6", "train.learning_rate=0.05", "train.ema=0.9", "train.batch_size=50"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    request = Request(data="digits", recipe="rbm", steps=150, overrides=QUICK)
    return fit_with_data(request, tmp_path_factory.mktemp("rbm") / "run", tensorboard=False)


def test_one_override_changes_the_number_of_hidden_units(trained):
    bundle = trained.bundle
    assert bundle.model.num_hidden == 6
    x = bundle.sample(20, num_steps=20)
    assert x.shape == (20, 1, 8, 8)
    assert ((x == 0) | (x == 1)).all()
    assert torch.equal(bundle.energy(x * 0.6), bundle.energy(x)), "a pixel above 0.5 is 1"
    assert set(bundle.score(x)) >= {"energy", "p_value"}


def test_its_evaluation_is_exact(trained, tmp_path):
    """log p of unseen digits against the sum over all states of the hidden units; better than independent pixels."""
    bundle, data = trained
    assert isinstance(data, Dataset)
    found = evaluate_bundle(bundle, train=data.train, held_out=data.held_out, num_samples=20, num_ode=0)
    likelihood = found.figures["likelihood"]
    energy, h = copy.deepcopy(bundle.model).double(), all_states(6)
    on = energy.visible_bias + h @ energy.weight
    log_z = torch.logsumexp(h @ energy.hidden_bias + torch.nn.functional.softplus(on).sum(1), 0)
    assert likelihood["log_z"] == pytest.approx(log_z.item(), rel=1e-9)
    assert likelihood["nats_independent"] + 2 < likelihood["nats"] < 0
    assert likelihood["bits_per_dim"] < likelihood["bits_per_dim_independent"] < likelihood["bits_per_dim_uniform"]
    page = write_report(tmp_path / "r.html", title="r", command="c", figures=found.figures, pictures={})
    assert "independent units" in page.read_text("utf-8")


def test_with_too_many_hidden_units_there_is_no_likelihood(trained):
    bundle, data = trained
    wide = copy.copy(bundle)
    wide.model = type(bundle.model)(shape=(1, 8, 8), num_hidden=70)
    assert wide.countable is wide.model
    assert likelihood_of_states(wide, data.held_out, data.held_out, data.train) is None
    known = LogZ(50.0, 49.0, 52.0, 100.0)
    wide.config = {**wide.config, "log_z": {**known._asdict(), "temperature": 1.0, "support": "states"}}
    found = likelihood_of_states(wide, data.held_out, data.held_out, data.train)
    assert found is not None
    assert found["nats"] == pytest.approx(float(wide.log_prob(data.held_out).estimate.mean()), rel=1e-4)
    assert (found["nats_low"] - found["nats"], found["nats_high"] - found["nats"]) == pytest.approx((-2, 1))


def test_its_constant_is_exact_without_draws_and_kept(trained, tmp_path):
    bundle, data = trained
    bundle.save_pretrained(tmp_path / "run")
    found = thalweg.load(tmp_path / "run").log_z(num_steps=1)
    assert found.estimate == pytest.approx(float(copy.deepcopy(bundle.model).double().log_z()), rel=1e-12)
    assert found.low == found.estimate == found.high == found.forward == found.reverse
    assert math.isinf(found.ess)
    assert "exact" in str(found)
    again = thalweg.load(tmp_path / "run")
    assert again.constant == found
    log_p = again.log_prob(data.held_out[:5])
    assert torch.equal(log_p.low, log_p.estimate)
    assert torch.equal(log_p.high, log_p.estimate)


def test_at_another_temperature_the_constant_is_that_of_the_tempered_energy(trained, tmp_path):
    """E = -b·v - H log 2 at T = 2, where states are no longer counted: sum softplus(b / 2) + H log 2 / 2."""
    other = copy.copy(trained.bundle)
    other.path, other.sampler = tmp_path, GibbsWithGradients(temperature=2.0)
    other.model = copy.deepcopy(other.model)
    with torch.no_grad():
        other.model.weight.zero_()
        other.model.hidden_bias.zero_()
        exact = float(torch.nn.functional.softplus(other.model.visible_bias / 2).sum() + 3 * math.log(2))
    found = other.log_z(num_steps=32, num_chains=64)
    assert found.low <= exact <= found.high
    assert found.high - found.low < 1


def test_a_machine_of_more_hidden_units_than_the_samplers_is_refused(tmp_path):
    request = Request(data="digits", recipe="rbm", steps=1, overrides=["energy.num_hidden=501"])
    with pytest.raises(UserError, match="501"):
        fit_with_data(request, tmp_path / "run", tensorboard=False)


def test_binarize():
    transform = Binarize()
    assert isinstance(transform, Transform)
    x = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    assert transform.forward(x).tolist() == [[0, 0, 1, 1]]
    assert transform.fit(x) is transform
    assert transform.inverse(transform.forward(x)).tolist() == [[0, 0, 1, 1]]
    assert transform.log_abs_det(x).tolist() == [0]
    assert Binarize(**{k: v for k, v in Binarize(threshold=0.3).to_dict().items() if k != "type"}).threshold == 0.3
    with pytest.raises(UserError) as caught:
        Binarize(threshold=float("nan"))
    assert caught.value.argument == "threshold"
