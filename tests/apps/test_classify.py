"""A joint energy in use: probabilities, temperature, samples of a class, and every way to ask for them wrongly."""

import csv
import json
import sys

import numpy as np
import pytest
import torch

import thalweg
from thalweg.bundle import temperature
from thalweg.cli import main as cli
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.run.fit import Request, fit

TINY = ["energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "energy.hidden=32"]
TINY += ["train.batch_size=32", "train.precision=fp32", "objective.rows=16", "objective.radius=0.05"]


@pytest.fixture(scope="session")
def joint(tmp_path_factory):
    """A classifier and density of 8 x 8 digits after a few seconds."""
    request = Request(data="digits", recipe="jem", steps=150, overrides=[*TINY, "train.ema=0.9", "train.warmup=10"])
    return fit(request, tmp_path_factory.mktemp("jem") / "run", tensorboard=False)


def held_out():
    from thalweg.data.catalog import load

    data = load("digits", seed=0)
    return data.held_out, data.held_out_labels


def test_it_classifies_what_no_training_saw(joint):
    x, labels = held_out()
    p = joint.classify(x)
    assert p.shape == (len(x), 10)
    torch.testing.assert_close(p.sum(1), torch.ones(len(x)))
    assert float((p.argmax(1) == labels).float().mean()) > 0.7  # chance is 0.1


def test_probabilities_are_the_softmax_of_minus_the_joint_energy(joint):
    x, _ = held_out()
    energies = torch.stack([joint.model.joint(x[:20], torch.full((20,), k)) for k in range(10)], 1)
    torch.testing.assert_close(joint.classify(x[:20]), (-energies).softmax(1))
    torch.testing.assert_close(joint.energy(x[:20]), -torch.logsumexp(-energies, 1), rtol=1e-4, atol=1e-2)


def test_a_row_does_not_depend_on_its_company_nor_on_the_calls_before(joint):
    x, _ = held_out()
    p = joint.classify(x)
    torch.testing.assert_close(p[7:9], joint.classify(x[7:9]))


def test_the_temperature_is_what_held_out_labels_like_best(joint):
    x, labels = held_out()
    scores = torch.log(joint.classify(x)).double()

    def surprise(beta):
        return float(torch.nn.functional.cross_entropy(beta * scores, labels, label_smoothing=1 / (1 + len(labels))))

    assert surprise(1.0) < min(surprise(0.97), surprise(1.03))
    assert joint.config["classes"]["num_classes"] == 10
    again = thalweg.load(joint.path)  # the temperature travels in the weights
    assert torch.equal(again.classify(x[:5]), joint.classify(x[:5]))


def test_a_classifier_that_is_always_right_keeps_a_finite_temperature(joint, monkeypatch):
    scores = 5 * torch.eye(10).repeat(3, 1)
    monkeypatch.setattr(temperature, "scores_of", lambda bundle, x: scores)
    before = joint.model.inverse_temperature.clone()
    try:
        found = temperature.calibrate(joint, scores, torch.arange(10).repeat(3))
        assert 0.06 < found["temperature"] < 20
        assert found["held_out_accuracy"] == 1
    finally:
        joint.model.inverse_temperature.copy_(before)


def test_samples_of_a_class_are_of_that_class(joint):
    """Labels steer: the classifier itself reads its samples as asked far more often than by chance (0.1), and rejects
    the mutant that hands every row its neighbour's class."""
    labels = torch.arange(40) % 10
    x = joint.sample(40, seed=3, num_steps=12, labels=labels, strength=3.0)
    read = joint.classify(x).argmax(1)
    assert x.shape == (40, 1, 8, 8)
    assert float((read == labels).float().mean()) > 0.6
    assert float((read == labels.roll(1)).float().mean()) < 0.3


def test_samples_of_a_class_do_not_depend_on_how_many_follow(joint):
    few = joint.sample(3, seed=5, num_steps=4, labels=[1, 2, 3])
    many = joint.sample(103, seed=5, num_steps=4, labels=[1, 2, 3, *[4] * 100])
    torch.testing.assert_close(many[:3], few, rtol=1e-3, atol=1e-4)
    assert not torch.equal(few, joint.sample(3, seed=5, num_steps=4, labels=4))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 10], "labels=10: must be classes of the model, 0 to 9"),
        ([0, -1, 2], "labels=-1: must be classes"),
        ([0.0, 1.0, 2.0], "must be 3 whole numbers"),
        ([True, False, True], "must be 3 whole numbers"),
        ([0, 1], "must be 3 whole numbers, or one for all"),
        ([[0, 1, 2]], "must be 3 whole numbers"),
        ("three", "must be a class of the model; there are: 0, 1"),
        ([0, [1], 2], "must be 3 whole numbers"),
        (None, ""),
    ],
)
def test_labels_that_make_no_sense_are_refused_in_one_line(joint, labels, said):
    if labels is None:
        assert joint.sample(3, num_steps=2).shape == (3, 1, 8, 8)
        return
    with pytest.raises(UserError, match=said) as caught:
        joint.sample(3, num_steps=2, labels=labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strength", [0, -1.0, float("nan"), float("inf"), "much", True])
def test_the_strength_is_checked(joint, strength):
    with pytest.raises(UserError, match="strength="):
        joint.sample(2, num_steps=2, labels=1, strength=strength)


def test_inputs_that_make_no_sense_are_refused_in_one_line(joint, digits):
    x, _ = held_out()
    spoilt = x[:4].clone()
    spoilt[2, 0, 0, 0] = float("nan")
    for wrong, said in (
        (spoilt, "1 of 4 rows are not"),
        (torch.rand(2, 1, 28, 28), "must have the shape"),
        (2 * x[:2] + 1, "divide by 255"),
        ("a picture", "x: must be an array"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            joint.classify(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no classes; train one on labelled data with --recipe jem"):
        digits.classify(x[:2])


def _npz(path, y, n=40, key="y"):
    x = torch.rand(n, 8, 8, generator=generator(0, "npz")).numpy()
    np.savez(path, **({"x": x} if y is None else {"x": x, key: y}))
    return path


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (None, "must have labels, which are whole numbers"),
        (np.arange(40) / 3, "must have labels, .*, and y holds numbers with fractions, .*; number the classes from 0"),
        (np.array(["a", "b"] * 20), "must have labels, which are whole numbers, .*, and y holds texts; number"),
        (np.array([{}] * 40), "must have labels, which are whole numbers, .*, and y holds Python objects; number"),
        (np.full(40, 3), "labels of two classes or more, and all are 3"),
        (np.arange(40) % 12 * 2, "has 0 to 22.*energy.num_classes=23"),
        (np.arange(40) % 3 - 1, "has -1 to 1; number the classes from 0$"),
        (np.arange(39), "39 labels for 40 rows"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused_before_any_work(tmp_path, y, said):
    request = Request(data=_npz(tmp_path / "mine.npz", y), recipe="jem", steps=1, overrides=TINY)
    with pytest.raises(UserError, match=said) as caught:
        fit(request, tmp_path / "run", tensorboard=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_energy_without_classes_is_refused_by_name(tmp_path):
    overrides = ["energy.type=thalweg.energy.noise_conditional.unet:UNetEnergy", "train.batch_size=32"]
    with pytest.raises(UserError, match="UNetEnergy lacks num_classes"):
        fit(Request(data="digits", recipe="jem", steps=1, overrides=overrides), tmp_path / "run", tensorboard=False)


def test_other_numbers_of_classes_and_chains_train_too(tmp_path):
    """Three classes from a file, by chains that keep their class."""
    data = _npz(tmp_path / "three.npz", np.arange(40) % 3, key="labels")
    overrides = ["energy.channels=[8]", "energy.hidden=16", "energy.num_classes=3", "train.batch_size=12"]
    overrides += ["objective.generative.num_steps=2", "objective.generative.buffer_size=30"]
    bundle = fit(
        Request(data=data, recipe="jem-pcd", steps=3, overrides=overrides), tmp_path / "run", tensorboard=False
    )
    assert bundle.classify(torch.rand(5, 1, 8, 8)).shape == (5, 3)
    assert bundle.sample(4, num_steps=3, labels=[0, 1, 2, 0]).shape == (4, 1, 8, 8)
    with pytest.raises(UserError, match="labels=3: must be classes"):
        bundle.sample(1, num_steps=3, labels=3)


def test_a_run_does_not_go_on_with_other_labels(tmp_path):
    """Labels that nothing learns from may change."""
    data, overrides = _npz(tmp_path / "two.npz", np.arange(40) % 2), [*TINY, "energy.num_classes=2"]
    request = Request(data=data, recipe="jem", steps=1, overrides=overrides)
    fit(request, tmp_path / "run", tensorboard=False)
    plain = Request(data=data, recipe="dual", steps=1, overrides=["train.batch_size=8"])
    fit(plain, tmp_path / "plain", tensorboard=False)
    for name in ("run", "plain"):
        (tmp_path / name / "manifest.json").unlink()  # so that it is not complete
    _npz(data, (np.arange(40) + 1) % 2)
    with pytest.raises(UserError, match=r"run: must have the labels that the run began with.*put back"):
        fit(request, tmp_path / "run", resume=True, tensorboard=False)
    fit(plain, tmp_path / "plain", resume=True, tensorboard=False)


def _command(monkeypatch, capfd, *words):
    monkeypatch.setattr(sys, "argv", ["thalweg", *map(str, words)])
    capfd.readouterr()
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capfd.readouterr()
    return code, out, err.splitlines()


def test_the_command_writes_a_table_and_refuses_in_one_line(joint, digits, tmp_path, monkeypatch, capfd):
    x, labels = held_out()
    np.save(tmp_path / "x.npy", x[:30].numpy())
    out = tmp_path / "classes.csv"
    code, text, _ = _command(monkeypatch, capfd, "classify", joint.path, tmp_path / "x.npy", "-o", out, "--json")
    assert code == 0
    assert json.loads(text)["rows"] == 30
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert list(rows[0])[:4] == ["name", "label", "confidence", "energy"]
    p = torch.tensor([[float(row[f"p_{k}"]) for k in range(10)] for row in rows])
    torch.testing.assert_close(p, joint.classify(x[:30]))
    assert [int(row["label"]) for row in rows] == p.argmax(1).tolist()
    assert np.mean([int(row["label"]) == int(y) for row, y in zip(rows, labels, strict=False)]) > 0.5
    for words, said in (
        ((digits.path, tmp_path / "x.npy", "-o", out), "no classes"),
        ((digits.path, tmp_path / "nothing.npy", "-o", out), "no classes"),  # before a row is read
        ((joint.path, tmp_path / "x.npy", "-o", tmp_path / "x.txt"), "x.txt"),
        ((joint.path, tmp_path / "nothing.npy", "-o", out), "nothing.npy"),
    ):
        code, _, err = _command(monkeypatch, capfd, "classify", *words)
        assert code == 2
        assert len(err) == 1
        assert said in err[0]


def test_the_command_draws_classes(joint, tmp_path, monkeypatch, capfd):
    words = ("sample", joint.path, "-n", 4, "--label", 1, "--label", 7, "--num-steps", 3, "-o", tmp_path / "s.png")
    assert _command(monkeypatch, capfd, *words)[0] == 0
    assert (tmp_path / "s.png").stat().st_size > 100
    code, _, err = _command(monkeypatch, capfd, *words[:4], "--label", 10, "-o", tmp_path / "s.png")
    assert code == 2
    assert "--label='10': must be a class of the model; there are: 0, 1" in err[-1]
    picture = (tmp_path / "s.png").read_bytes()
    for asked, said in (
        (("-n", 10**12, "--label", 1), "must fit in this machine's memory"),
        (("-n", 2, "--strength", 2), "must be 1 without labels"),
    ):
        code, _, err = _command(monkeypatch, capfd, "sample", joint.path, *asked, "-o", tmp_path / "s.png")
        assert (code, len(err)) == (2, 1)
        assert said in err[0]
    assert (tmp_path / "s.png").read_bytes() == picture


def test_a_joint_energy_completes_images(joint):
    x = held_out()[0][:2]
    seen = torch.arange(8) < 4
    found = joint.inpaint(x, seen, n=2)
    assert found.shape == (2, 2, 1, 8, 8)
    assert torch.equal(found[..., :4], x[..., :4].expand(2, -1, -1, -1, -1))
    assert found[..., 4:].std() > 0.05
