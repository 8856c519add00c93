"""The recipe rbm from the command's request to a bundle, its samples and its exact likelihood."""

import copy

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.data.catalog import Dataset
from thalweg.data.transform import Binarize, Transform
from thalweg.energy.enumeration import all_states
from thalweg.evaluate.report import write_report
from thalweg.evaluate.states import exact_likelihood
from thalweg.evaluate.suite import evaluate_bundle
from thalweg.run.fit import Request, fit_with_data

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
    assert exact_likelihood(wide, data.held_out, data.held_out, data.train) is None


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
