"""Every stored type's servable: its inputs and outputs, rows apart from each other, and what it can do besides."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from thalweg.apps.anomaly import served
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.bundle import tempered_draws
from thalweg.bundle.image_reasons import has_reasons, image_reasons
from thalweg.bundle.servable import (
    NUMPY,
    Calibrated,
    Classifies,
    Explains,
    Inpaints,
    Samples,
    Servable,
)
from thalweg.bundle.served import as_table
from thalweg.core.errors import UserError
from thalweg.sampler.annealed import Heun
from thalweg.sampler.gibbs import Gibbs
from thalweg.sampler.langevin import ULA
from thalweg.serve.models import CAPABILITIES, Models, histogram

ROWS = 5
SMALL = ("energy.widths=[96,48]", "energy.embed=16", "train.batch_size=16", "train.precision=fp32", "train.warmup=1")
JEM = ["energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "energy.hidden=16", "data.limit=300"]


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"age": random.normal(40, 10, 200), "city": random.choice(["rome", "oslo"], 200)})
    return DetectorBundle(EnergyDetector(random_state=0).fit(frame))


@pytest.fixture(scope="module")
def grey():
    images = np.random.default_rng(0).random((60, 1, 8, 8), np.float32)
    detector = EnergyDetector(kind="image", random_state=0, options={"steps": 3, "overrides": SMALL})
    return DetectorBundle(detector.fit(images))


@pytest.fixture(scope="module")
def jem(tmp_path_factory, train_bundle):
    return train_bundle(tmp_path_factory.mktemp("jem") / "run", "digits", "jem", steps=3, overrides=JEM)


def rows_of(servable, seed=0):
    """Rows of the stated inputs."""
    random, found = np.random.default_rng(seed), {}
    for spec in servable.inputs:
        shape = (ROWS, *spec.shape[1:])
        if spec.datatype == "BYTES":
            found[spec.name] = np.array(random.choice(["bama", "feto", "luna"], shape), object)
        else:
            found[spec.name] = random.random(shape).astype(NUMPY[spec.datatype])
    return found


CAN = {
    "digits": {"calibrated", "explain", "sample", "inpaint"},
    "chains": {"calibrated", "sample"},
    "words": {"calibrated", "explain", "sample"},
    "jem": {"calibrated", "explain", "sample", "inpaint", "classify"},
    "table": {"calibrated", "explain"},
    "grey": {"calibrated", "explain"},
}


@pytest.mark.parametrize("name", CAN)
def test_the_contract_of_a_servable(name, request):
    """R21 too: row i of an answer depends on row i alone."""
    servable = request.getfixturevalue(name).servable()
    assert isinstance(servable, Servable)
    rows = rows_of(servable)
    found = servable.score(rows)
    assert list(found) == [spec.name for spec in servable.outputs]
    for spec in servable.outputs:
        assert found[spec.name].shape == (ROWS, *spec.shape[1:]), spec
        assert found[spec.name].dtype == NUMPY[spec.datatype], spec
    for i in range(ROWS):
        alone = servable.score({name: value[i : i + 1] for name, value in rows.items()})
        for output, value in alone.items():
            np.testing.assert_allclose(value[0], found[output][i], rtol=1e-5, atol=1e-5, err_msg=output)
    can = {word for word, protocol in CAPABILITIES.items() if isinstance(servable, protocol)}
    assert can | ({"calibrated"} if isinstance(servable, Calibrated) else set()) == CAN[name]
    described = Models.of({name: servable}, {})[name].describe()
    assert sum(described["histogram"]["counts"]) == len(servable.calibration_energies)


@pytest.mark.parametrize("name", CAN)
def test_wrong_inputs_name_the_input(name, request):
    servable = request.getfixturevalue(name).servable()
    rows = rows_of(servable)
    first = servable.inputs[0].name
    for wrong in ({}, {**rows, "more": rows[first]}, {**rows, first: rows[first][:0]}):
        with pytest.raises(UserError) as caught:
            servable.score(wrong)
        assert caught.value.argument in (first, "more", servable.inputs[-1].name)


# Rows of a table, and whether a frame must be looked at, which says what is wrong or what else a value is taken for.
TABLES = {
    "known": ({"age": [40.0, -3.5], "city": ["rome", "oslo"], "member": [1.0, 0.0]}, False),
    "gaps": ({"age": [np.nan, 12.0], "city": [None, "oslo"], "member": [np.nan, 1.0]}, False),
    "a new category": ({"age": [40.0], "city": ["nowhere"], "member": [1.0]}, False),
    "a number as a category": ({"age": [40.0], "city": [3], "member": [1.0]}, True),
    "neither true nor false": ({"age": [40.0], "city": ["rome"], "member": [2.0]}, True),
    "infinity": ({"age": [np.inf], "city": ["rome"], "member": [1.0]}, True),
}


@pytest.fixture(scope="module")
def members():
    """Detectors of a table with all kinds of columns, by what they do with gaps."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"age": random.normal(40, 10, 90), "city": random.choice(["rome", "oslo"], 90)})
    frame["member"] = random.random(90) < 0.5
    return {gaps: EnergyDetector(random_state=0, missing=gaps).fit(frame) for gaps in ("raise", "marginalise")}


def told(call):
    """What a call returns, or the message of its error."""
    try:
        return call().tolist()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("gaps", ["raise", "marginalise"])
@pytest.mark.parametrize("case", TABLES)
def test_rows_of_a_table_score_as_its_frame_does(gaps, case, members, monkeypatch):
    servable, (values, look) = DetectorBundle(members[gaps]).servable(), TABLES[case]
    rows = {name: np.array(value, object if name == "city" else float) for name, value in values.items()}
    looks = []
    monkeypatch.setattr(served, "as_table", lambda rows: looks.append(1) or as_table(rows))
    assert told(lambda: servable.score(rows)["energy"]) == told(lambda: members[gaps].energy(as_table(rows)))
    assert bool(looks) == (look or (case == "gaps" and gaps == "raise"))


def test_a_new_category_of_digits_does_not_depend_on_its_companions(members):
    servable = DetectorBundle(members["raise"]).servable()
    rows = {"age": np.array([40.0, 40.0]), "city": np.array(["3", "nowhere"], object), "member": np.array([1.0, 1.0])}
    together = servable.score(rows)["energy"]
    alone = [servable.score({name: value[i : i + 1] for name, value in rows.items()})["energy"][0] for i in (0, 1)]
    assert together == pytest.approx(alone, rel=1e-9)


def test_reasons_of_a_table_and_of_images(table, grey):
    told = table.servable().explain({"age": np.array([40.0, 90.0]), "city": np.array(["rome", "oslo"], object)}, top=1)
    assert [len(row["reasons"]) for row in told] == [1, 1]
    assert told[1]["reasons"][0]["feature"] == "age"
    assert told[1]["reasons"][0]["value"] == 90.0
    (one,) = grey.servable().explain({"x": np.zeros((1, 1, 8, 8), np.float32)})
    assert one["map"].shape == (8, 8)
    assert one["repaired"].shape == (1, 8, 8)


def test_reasons_of_a_text(words):
    servable = words.servable()
    assert isinstance(servable, Explains)
    (told,) = servable.explain({"x": np.array(["bama"], object)}, top=2)
    assert len(told["reasons"]) == 2
    assert len(told["surprise"]) == 4
    assert told["reasons"][0]["surprise"] == max(told["surprise"])


def test_pixels_add_up_to_the_difference_of_energies(digits, chains):
    """Integrated gradients are complete; the mutant is a plain gradient times the difference."""
    x = torch.rand(3, *digits.shape, generator=torch.Generator().manual_seed(0))
    parts, likelier = image_reasons(digits, x)
    difference = digits.energy(x) - digits.energy(likelier)
    assert (difference > 0).all()
    torch.testing.assert_close(parts.sum((1, 2)), difference, rtol=0.03, atol=0.05)
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(digits.energy(at).sum(), at)
    assert not torch.allclose(((x - likelier) * g).sum((1, 2, 3)), difference, rtol=0.03, atol=0.05)
    assert not has_reasons(chains)


@pytest.mark.parametrize("name", ["digits", "chains"])
def test_the_last_frame_is_the_draw(name, request):
    bundle = request.getfixturevalue(name)
    servable = bundle.servable()
    assert isinstance(servable, Samples)
    frames = list(servable.sample_frames(2, seed=3, frames=4))
    assert len(frames) == 4
    assert frames[-1][0].shape == (2, *bundle.shape)
    np.testing.assert_allclose(frames[-1][0], bundle.sample(2, seed=3).numpy(), atol=1e-4)
    np.testing.assert_allclose(frames[-1][1], bundle.energy(torch.from_numpy(frames[-1][0])), rtol=1e-3)
    assert frames[0][1].mean() > frames[-1][1].mean()


def test_completions_keep_what_is_observed(digits):
    servable = digits.servable()
    assert isinstance(servable, Inpaints)
    x, observed = np.full((1, 1, 8, 8), 0.25, np.float32), np.tri(8, dtype=bool)[None, None]
    first, second = servable.inpaint(x, observed, n=2, seed=1)
    assert (first[observed] == 0.25).all()
    assert np.abs(first - second).max() > 0.01


def test_probabilities_of_labels(jem):
    servable = jem.servable()
    assert isinstance(servable, Classifies)
    found = servable.classify(rows_of(servable))
    assert found.shape == (ROWS, len(servable.labels))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


class Gaussian(torch.nn.Module):
    """U(y, t) = |y|² / (2 (1 + t)) + D/2 log(1 + t): data N(0, I) with noise."""

    t_min, t_max, shape = 0.01, 100.0, (50,)

    def __init__(self):
        super().__init__()
        self.device_of = torch.nn.Parameter(torch.zeros(()))

    def forward(self, y, t):
        t = torch.as_tensor(t, dtype=y.dtype)
        return (y**2).sum(1) / (2 * (1 + t)) + y.shape[1] / 2 * torch.log(1 + t) + 0 * self.device_of

    def prior(self, n, generator):
        return torch.randn(n, 50, generator=generator) * (1 + self.t_max) ** 0.5

    def prior_log_prob(self, y):
        return -self(y, self.t_max)


def variance(temperature):
    model = Gaussian()
    bundle = SimpleNamespace(model=model, sampler=Heun(num_steps=30), device=torch.device("cpu"))
    *_, z = tempered_draws._block(bundle, 0, 100, 0, temperature, None, 1)  # pyright: ignore[reportArgumentType]
    return float(z.var())


def test_draws_at_a_temperature_tend_to_its_law(monkeypatch):
    """exp(-U(., t_min) / T) has the variance T (1 + t_min), and denoised T / (1 + t_min). 5,000 numbers: 2 %."""
    assert variance(1.0) == pytest.approx(1 / 1.01, rel=0.08)
    cold, hot = variance(0.25), variance(2.0)
    assert 0.25 / 1.01 * 0.95 < cold < 0.8
    assert 1.2 < hot < 2 / 1.01 * 1.05
    monkeypatch.setattr(tempered_draws, "CORRECTIONS", 60)
    assert variance(0.25) == pytest.approx(0.25 / 1.01, rel=0.12)
    monkeypatch.setattr(tempered_draws, "CORRECTIONS", 0)  # the mutant: the temperature is not heard
    assert variance(0.25) == pytest.approx(1 / 1.01, rel=0.08)


@pytest.mark.parametrize(("n", "seed", "argument"), [(-1, 0, "n"), (1.5, 0, "n"), (1, -1, "seed"), (1, 2**64, "seed")])
def test_draws_at_a_temperature_refuse_what_samples_refuse(n, seed, argument, chains):
    servable = chains.servable()
    for draws in (servable.sample, lambda *n, **how: next(servable.sample_frames(*n, **how))):
        with pytest.raises(UserError) as caught:
            draws(n, seed=seed, temperature=2.0)
        assert caught.value.argument == argument
    assert servable.sample(0, temperature=2.0).shape == (0, 2)


@pytest.mark.parametrize("name", ["chains", "table"])
def test_alpha_is_one_number_or_one_a_row(name, request):
    servable = request.getfixturevalue(name).servable()
    rows = rows_of(servable)
    flags = servable.score(rows, alpha=np.array([1.0] + [np.nan] * (ROWS - 1)))["flag"]
    assert flags.shape == (ROWS,)
    assert flags[0]
    for alpha in (np.full(ROWS + 1, 0.1), np.full((ROWS, ROWS), 0.1)):
        with pytest.raises(UserError) as caught:
            servable.score(rows, alpha=alpha)
        assert caught.value.argument == "alpha"


def test_a_kernel_with_a_temperature_gets_another_one():
    kernel, energy = tempered_draws._tempered(ULA(step_size=0.1, temperature=0.5), torch.sum, 2.0)
    assert (kernel.temperature, energy) == (1.0, torch.sum)
    gibbs = Gibbs(num_hidden=2)
    kernel, energy = tempered_draws._tempered(gibbs, lambda x: x.sum(1), 2.0)
    assert kernel is gibbs
    assert float(energy(torch.ones(1, 4))) == 2.0


@pytest.mark.parametrize("energies", [[1.4e306] * 9, [-1e308, 1e308], [1e306, 1.0000000000000002e306], []])
def test_no_bins_of_numbers_that_have_none(energies):
    """R15: a stored calibration may hold any finite numbers; the service starts without a histogram."""
    assert histogram(np.array(energies)) is None
    assert histogram(np.linspace(0, 1, 50)) is not None
