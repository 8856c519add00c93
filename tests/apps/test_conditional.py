"""A table with named targets: training, the bundle, predictions by name, and what is refused."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

import thalweg
from thalweg.apps.conditional.model import ConditionalModel
from thalweg.bundle.bundle import Bundle
from thalweg.core.errors import UserError
from thalweg.energy.networks.conditional import LabelEnergy, RegressionEnergy
from thalweg.energy.outcomes import Binary, Classes
from thalweg.run.fit import Request, fit


def table(n=400, **changed):
    """Labels among the covariates, one of which is far from zero; calm and happy come together."""
    draws = np.random.default_rng(0)
    x, shared = draws.normal(size=(n, 2)), draws.normal(size=n)
    frame = pd.DataFrame(
        {
            "calm": (x[:, 0] + 2 * shared > 0).astype(int),
            "tempo": 120 + 15 * x[:, 0],
            "happy": (x[:, 1] + 2 * shared > 0).astype(int),
            "level": x[:, 1],
        }
    )
    return frame.assign(**changed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the folder of a run on a table, the bundle as trained)."""
    folder = tmp_path_factory.mktemp("conditional")
    table().to_csv(folder / "songs.csv", index=False)
    return folder / "run", fit(request(folder / "songs.csv"), folder / "run", tensorboard=False)


def request(path, *overrides, targets="[happy, calm]", steps=100):
    own = ["data.held_out=0.4", "train.learning_rate=0.03", "train.weight_decay=0.1", "energy.depth=0"]
    overrides = [f"data.targets={targets}", *own, *overrides]
    return Request(data=path, recipe="conditional-labels", steps=steps, overrides=overrides)


def test_targets_are_the_last_columns_untouched_and_figures_stand_beside_baselines(run):
    folder, trained = run
    bundle = thalweg.load(folder)
    assert isinstance(bundle, Bundle)
    assert bundle.layout.names == ["tempo", "level", "happy", "calm"]
    assert bundle.model.outcomes == Binary(2)
    figures = bundle.config["conditional"]
    assert figures["targets"] == ["happy", "calm"]
    assert figures["log_prob"] == pytest.approx(-float(trained.held_out_energies.mean()), abs=1e-5)
    # Labels that come together: a logistic regression each cannot say so.
    assert figures["log_prob"] > figures["baselines"]["logistic_regression"] > figures["baselines"]["frequencies"]
    assert float(bundle.model.couplings[0, 1]) > 0.5
    rows = torch.tensor(table()[bundle.layout.names].to_numpy(), dtype=torch.float32)
    assert float((bundle.model.standardised(rows[:, :2]).std(0) - 1).abs().max()) < 0.1
    assert torch.equal(bundle.encode(rows)[:, 2:], rows[:, 2:])


def test_scores_are_the_conditional_law_and_probabilities_come_by_name(run):
    bundle = thalweg.load(run[0])
    model, some = ConditionalModel(bundle), table().head(5).set_index(pd.Index(list("abcde")))
    total = torch.zeros(5)
    for happy in (0, 1):
        for calm in (0, 1):
            total += model.log_prob(some.assign(happy=happy, calm=calm)).exp()
    torch.testing.assert_close(total, torch.ones(5))
    torch.testing.assert_close(bundle.score(some)["log_prob"], model.log_prob(some))
    found = model.probabilities(some[["level", "tempo"]])  # by name, in any order
    assert list(found) == ["happy", "calm"]
    assert list(found.index) == list("abcde")
    both = model.log_prob(some.assign(happy=1, calm=1)).exp() + model.log_prob(some.assign(happy=1, calm=0)).exp()
    np.testing.assert_allclose(found["happy"], both, rtol=1e-4)
    assert model.most_probable(some).isin([0, 1]).all(axis=None)
    draws = model.sample(some, 400)
    assert len(draws) == 400
    share = np.mean([frame["happy"] for frame in draws], axis=0)
    assert np.abs(share - found["happy"]).max() < 5 * 0.5 / 20
    with pytest.raises(UserError):
        bundle.sample(4)


@pytest.mark.parametrize(
    ("changed", "targets", "overrides", "argument"),
    [
        ({}, "[sad]", [], "data.targets"),
        ({}, "[calm, calm]", [], "data.targets"),
        ({}, "[calm, happy, tempo, level]", [], "data.targets"),
        ({}, "[calm, tempo]", [], "targets of songs.csv"),
        ({"calm": 2}, "[calm, happy]", [], "targets of songs.csv"),
        ({"calm": np.where(np.arange(400) == 7, np.nan, 1)}, "[calm, happy]", [], "songs.csv"),
        ({"calm": np.arange(400) % 4}, "[calm]", ["energy.num_classes=3"], "targets of songs.csv"),
        ({}, "[calm, happy]", ["energy.num_classes=3"], "energy.num_targets"),
        ({}, "[calm, happy]", ["energy.num_targets=1"], "data.targets"),
        ({}, "[calm, happy]", ["transform.type=thalweg.data.transform:Standardize"], "transform"),
    ],
)
def test_a_table_that_cannot_be_learned_is_one_line(tmp_path, monkeypatch, changed, targets, overrides, argument):
    monkeypatch.chdir(tmp_path)
    table(**changed).to_csv("songs.csv", index=False)
    with pytest.raises(UserError) as caught:
        fit(request("songs.csv", *overrides, targets=targets, steps=1), "run")
    assert "\n" not in str(caught.value)
    assert str(caught.value.argument).startswith(argument)


def test_a_column_that_is_not_binary_is_named_with_what_to_add(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(level=np.arange(400) % 3).to_csv("songs.csv", index=False)
    start = r"targets of songs\.csv: must be 0 or 1, and column 'level'"
    classes = r"for classes from 0 add energy\.num_classes=3$"
    with pytest.raises(UserError, match=rf"{start} is 2 in 133 of 400 rows; {classes}"):
        fit(request("songs.csv", targets="[level]", steps=1), "run")
    taken = "which is taken as it is among the last, is 2 in 133 of 400 rows"
    with pytest.raises(UserError, match=rf"{start}, {taken}; name .* by data\.targets=\[NAME\], or {classes}"):
        fit(Request(data="songs.csv", recipe="conditional-labels", steps=1), "run")


def test_targets_are_of_a_conditional_energy_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table().to_csv("songs.csv", index=False)
    with pytest.raises(UserError) as caught:
        fit(Request(data="songs.csv", recipe="pcd", steps=1, overrides=["data.targets=[calm]"]), "run")
    assert caught.value.argument in ("data.targets", "energy.num_targets")


@pytest.mark.parametrize("wrong", [{"calm": 0.5}, {"calm": 2}, {"tempo": np.nan}])
def test_rows_that_are_none_of_the_model_are_refused(run, wrong):
    with pytest.raises(UserError):
        ConditionalModel(thalweg.load(run[0])).log_prob(table().head(3).assign(**wrong))
    with pytest.raises(UserError):
        ConditionalModel(thalweg.load(run[0])).probabilities(table().head(3).drop(columns="tempo"))


def test_arrays_in_memory_and_a_class():
    frame = table()
    kinds = frame["calm"] + frame["happy"]
    rows = np.column_stack([frame[["tempo", "level"]], kinds])
    energy = functools.partial(LabelEnergy, num_classes=3, width=4)
    bundle = thalweg.train(energy, rows, steps=60, progress=False)
    model = ConditionalModel(bundle)
    assert model.outcomes == Classes(3)
    found = model.probabilities(rows[:4, :2])
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert list(model.most_probable(rows[:4, :2])) == ["y_1"]
    assert bundle.normalised


def test_a_continuous_target_comes_with_an_interval():
    frame = table()
    energy = functools.partial(RegressionEnergy, width=4, depth=1)
    bundle = thalweg.train(energy, frame[["level", "calm", "tempo"]], steps=20, progress=False)
    figures = bundle.config["conditional"]
    assert figures["low"] < figures["log_prob"] < figures["high"]
    assert figures["high"] - figures["low"] < 0.5
    assert abs(figures["log_prob"] - figures["baselines"]["linear_regression"]) < 0.2
    model = ConditionalModel(bundle)
    assert abs(float(model.sample(frame[["calm", "level"]].head(50), 20)[0]["tempo"].mean()) - 120) < 15
    with pytest.raises(UserError):
        model.probabilities(frame.head(2))
    with pytest.raises(UserError):
        bundle.log_prob(frame[["level", "calm", "tempo"]])


def test_labels_that_cannot_be_counted_come_with_an_interval():
    draws = np.random.default_rng(0)
    rows = np.column_stack([draws.normal(size=(30, 2)), draws.random((30, 13)) < 0.5])
    energy = functools.partial(LabelEnergy, num_targets=13, width=4)
    bundle = thalweg.train(energy, rows, steps=5, progress=False)
    assert bundle.config["conditional"]["log_prob"] is None
    assert not bundle.normalised
    found = ConditionalModel(bundle).log_prob(rows[:1], num_chains=32)
    assert float(found.low) < float(found.estimate) < float(found.high)
    assert abs(float(found.estimate) + 13 * np.log(2)) < 3
    assert ConditionalModel(bundle).probabilities(rows[:2, :2]).shape == (2, 13)


def test_another_bundle_has_no_law_of_y():
    bundle = thalweg.train("toy2d", np.random.default_rng(0).normal(size=(50, 2)), steps=1, progress=False)
    with pytest.raises(UserError):
        ConditionalModel(bundle)
