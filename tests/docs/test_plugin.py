"""The package of examples/plugin is installed, found by its entry point, trained, and read by other commands."""

import importlib
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import thalweg
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.core.trust import trusted_packages
from thalweg.data.catalog import load as load_data
from thalweg.objective.base import Batch, Empty, Objective

SOURCE = Path(__file__).parents[2] / "examples" / "plugin"
NAME = "thalweg_example"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package, which is not on the path."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    words = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--no-compile", "-q"]
    command = [sys.executable, "-m", "pip", "install", *words, "--target", folder / "site", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def installed(site, monkeypatch):
    """The package is on the path, as PYTHONPATH or a virtual environment puts it there."""
    monkeypatch.syspath_prepend(site)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def test_the_installed_package_trains_and_its_run_is_read(installed, site, call, tmp_path, monkeypatch):
    """Without --trust anywhere. The energy tells data from points far away; without the package it is refused."""
    assert NAME in trusted_packages()
    assert NAME not in sys.modules
    words = ("--recipe", f"{NAME}:moons", "train.precision=fp32", "--steps", 50, "--no-report", "-o", "run", "--json")
    code, result, lines = call("train", "two-moons", *words)
    assert code == 0, lines
    assert result["training"]["steps"] == 50
    assert call("sample", "run", "-n", 20, "--num-steps", 20, "-o", "drawn.csv")[0] == 0
    assert call("score", "run", "drawn.csv", "-o", "scores.csv")[0] == 0

    bundle = thalweg.load(tmp_path / "run")
    assert type(bundle.model).__module__ == f"{NAME}.residual"
    rows = load_data("two-moons").held_out[:100]
    assert bundle.energy(rows).mean() < bundle.energy(rows + 5).mean() - 5
    assert bundle.score(rows)["p_value"].mean() == pytest.approx(0.5, abs=0.15)

    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
    with pytest.raises(UserError) as caught:
        thalweg.load(tmp_path / "run")
    assert f"--trust {NAME}" in str(caught.value.hint)


def test_its_network_trains_by_another_recipe_too(installed, call):
    words = (f"energy.type={NAME}.residual:ResidualEnergy", "energy.num_blocks=1", "train.precision=fp32")
    short = ("--steps", 2, "--no-report", "-o", "run")
    assert call("train", "two-moons", "--recipe", "pcd", *words, *short)[0] == 0


def test_its_objective_is_least_at_the_density_of_the_data(installed):
    """On standard normal data with the constant. Mutants: precision or constant off by a tenth or more."""
    contrast = importlib.import_module(f"{NAME}.contrast").GaussianContrast()
    assert isinstance(contrast, Objective)
    batch = Batch(torch.randn(20_000, 2, generator=generator(0, "x")))
    noise = contrast.draw(Empty(), batch, generator(0, "y"), 0.0)

    def loss(precision, constant):
        constant += math.log(2 * math.pi / precision)
        return float(contrast.loss(lambda x: precision * x.square().sum(1) / 2 + constant, Empty(), batch, noise)[0])

    least = loss(1.0, 0.0)
    assert all(least < loss(*wrong) for wrong in ((0.8, 0.0), (1.25, 0.0), (1.0, 0.2), (1.0, -0.2)))


PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "your-own.md").read_text("utf-8")
FILE = re.compile(r"This is `(mine\.py)`:\n\n```python no-run\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_file_of_the_page_trains_by_its_command(call, tmp_path, monkeypatch):
    """Its two commands as they stand, with few steps; then both ways in which the page loads the run."""
    name, code = FILE.findall(PAGE)[0]
    (tmp_path / name).write_text(code)
    commands = [shlex.split(line) for line in re.findall(r"^thalweg (.* --trust mine.*)$", PAGE, re.MULTILINE)]
    for words, more in zip(commands, (("--steps", 3, "--no-report"), ("--num-steps", 2)), strict=True):
        assert call(*words, *more)[0] == 0, words
    monkeypatch.chdir(tmp_path)
    bundle = thalweg.load("runs/mine", trust=("mine",))
    energy = type(bundle.model)(width=32)
    del sys.modules["mine"]
    rows = load_data("two-moons").held_out[:5]
    assert torch.equal(thalweg.load("runs/mine", energy=energy).energy(rows), bundle.energy(rows))
    assert "mine" not in sys.modules
