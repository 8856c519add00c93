"""Three bundles of a few seconds' training: a plane with its constant, images, and a chain's energy."""

import json
import sys

import pytest

from thalweg.cli import main as cli
from thalweg.run.fit import Request, fit

SMALL = ["train.batch_size=64", "energy.width=48", "energy.num_blocks=2", "data.limit=6000"]
TINY_IMAGE = ["energy.widths=[8,16]", "energy.num_blocks=[1,1]", "energy.embed=16", "train.batch_size=16"]


def run(folder, data, recipe="dual", steps=20, overrides=(), **keywords):
    request = Request(data=data, recipe=recipe, steps=steps, overrides=["train.precision=fp32", *overrides])
    return fit(request, folder, tensorboard=False, **keywords)


@pytest.fixture(scope="session")
def plane(tmp_path_factory):
    """A normalised model of eight Gaussians, trained a few seconds."""
    return run(tmp_path_factory.mktemp("plane") / "run", "eight-gaussians", steps=500, overrides=SMALL)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return run(tmp_path_factory.mktemp("digits") / "run", "digits", steps=25, overrides=TINY_IMAGE)


@pytest.fixture(scope="session")
def chains(tmp_path_factory):
    overrides = ["energy.width=8", "train.batch_size=16", "objective.buffer_size=64", "objective.num_steps=2"]
    return run(tmp_path_factory.mktemp("pcd") / "run", "two-moons", "pcd", overrides=overrides)


@pytest.fixture
def copy(digits, tmp_path):
    digits.save_pretrained(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """thalweg … in an empty folder: (exit code, the JSON object or None, lines of standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["thalweg", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, json.loads(out) if out.startswith("{") else None, err.splitlines()

    return run
