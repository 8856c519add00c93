"""Each skeleton of CONTRIBUTING.md is put into the package as the new file that it is, trained, and reloaded.

The files lie in a folder that is added to the paths of the packages, so that they are imported and found as if they
were there. Mutants that lack a method are refused in one line.
"""

import importlib
import importlib.util
import inspect
import json
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from pyarrow import feather
from pyarrow import table as arrow_table
from scipy.io import savemat

import thalweg
from thalweg.cli import console
from thalweg.cli import main as cli
from thalweg.core.config import class_at
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.rng import generator
from thalweg.data.catalog import load as load_data
from thalweg.data.options import DataOptions
from thalweg.run.fit import Request, fit
from thalweg.sampler.annealed import anneal
from thalweg.sampler.chain import run_chain

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SKELETON = re.compile(r"^`src/thalweg/(\S+\.py)`:\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = dict(SKELETON.findall(TEXT))
FAST = ("train.precision=fp32", "train.batch_size=32", "data.limit=300", "train.ema=0.9", "train.warmup=5")


class Overlay:
    """Files added to the package: imported and found as its own, until `close`."""

    def __init__(self, folder, files):
        self.folder, self.packages, self.before = folder, [], set(sys.modules)
        for path, code in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(code, "utf-8")
            name = "thalweg." + path.rpartition("/")[0].replace("/", ".")
            if (package := importlib.import_module(name)) not in self.packages:
                self.packages.append(package)
                package.__path__.append(str(target.parent))
        importlib.invalidate_caches()

    def close(self):
        for package in self.packages:
            package.__path__[:] = [path for path in package.__path__ if not path.startswith(str(self.folder))]
        for name in set(sys.modules) - self.before:
            if (sys.modules[name].__dict__.get("__file__") or "").startswith(str(self.folder)):
                parent, _, last = name.rpartition(".")
                del sys.modules[name]
                vars(sys.modules[parent]).pop(last, None)


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """The folder of the skeletons, which are part of the package."""
    overlay = Overlay(tmp_path_factory.mktemp("skeletons"), FILES)
    yield overlay.folder
    overlay.close()


@pytest.fixture
def mutant(tmp_path):
    """Add a skeleton with a change: `mutant(path, old, new)`."""
    overlays = []

    def add(path, old, new):
        assert old in FILES[path]
        renamed = path.replace(".py", "_mutant.py")
        overlays.append(Overlay(tmp_path / "mutant", {renamed: FILES[path].replace(old, new)}))
        return "thalweg." + renamed.removesuffix(".py").replace("/", ".")

    yield add
    for overlay in overlays:
        overlay.close()


def train(folder, *overrides, data="two-moons", recipe="pcd", steps=3):
    """A short run, left in a folder and read again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        fit(Request(data=data, recipe=recipe, steps=steps, overrides=[*FAST, *overrides]), folder, tensorboard=False)
    return thalweg.load(folder)


def command(monkeypatch, folder, *words):
    """Exit code of `thalweg WORDS`, with the commands that are there now."""
    app = typer.Typer()
    app.callback()(lambda: None)
    cli.add_commands(app)
    monkeypatch.setattr(sys, "argv", ["thalweg", *map(str, words)])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        console.run(app)
    return stop.value.code


def of(path, name):
    return vars(importlib.import_module("thalweg." + path.removesuffix(".py").replace("/", ".")))[name]


def contract(name):
    """The tests of a contract suite, as a module."""
    spec = importlib.util.spec_from_file_location(f"contract_{name}", ROOT / "tests" / "contract" / f"test_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def held_to(module, **given):
    """Run each test of a suite that takes what is given and nothing else but its own parameters; how many cases."""
    count = 0
    for name, test in vars(module).items():
        if name.startswith("test_") and inspect.isfunction(test):
            wanted = inspect.signature(test).parameters
            for values in product(*(_values(test, key, given) for key in wanted)) if wanted else ():
                test(**dict(zip(wanted, values, strict=True)))
                count += 1
    return count


def _values(test, key, given):
    own = [mark.args[1] for mark in test.__dict__.get("pytestmark", ()) if mark.args and mark.args[0] == key]
    if own:
        return [value for value in own[0] if key not in given or value is given[key]]
    return [given[key]] if key in given else []


def test_there_is_a_skeleton_of_each_kind():
    kinds = ("sampler", "objective", "energy/networks", "energy/noise_conditional", "data/sets", "data/formats", "apps")
    assert {*kinds, "cli"} == {path.rpartition("/")[0] for path in FILES}
    assert all(not (ROOT / "src" / "thalweg" / path).exists() for path in FILES)
    for path, code in FILES.items():
        assert contract("layers").violations(path, code) == []


def test_the_commands_name_what_is_there(added):
    """Each part that a recipe may name has a command that does, and a config may build it."""
    named = set(re.findall(r"type=(thalweg\.[\w.]+:\w+)", TEXT))
    assert {class_at(name, "type").__name__ for name in named} == {
        *("RandomWalk", "Euler", "FiniteDifferenceScoreMatching", "BoundedEnergy", "ShallowEnergy"),
    }


def test_a_sampler(added, tmp_path):
    """Moments of a skewed target within 5 sigma; the mutant that accepts everything is rejected."""
    walk = of("sampler/walk.py", "RandomWalk")

    def exponential(x):  # density exp(-x) on x > 0: mean 1, variance 1
        return torch.where(x[:, 0] > 0, x[:, 0], torch.inf)

    n, start = 2000, torch.ones(2000, 1)
    end = run_chain(walk(step_size=1.5), exponential, start, num_steps=100, seed=3)
    assert abs(float(end.mean()) - 1) < 5 / n**0.5
    everything = run_chain(walk(step_size=1.5), lambda x: torch.zeros(len(x)), start, num_steps=100, seed=3)
    assert float(everything.var()) > 10

    bundle = train(tmp_path / "run", "sampler.type=thalweg.sampler.walk:RandomWalk", "sampler.step_size=0.3")
    assert bundle.sampler == walk(step_size=0.3)
    start, end = (bundle.sample(100, num_steps=k) for k in (1, 300))
    assert bundle.energy(end).mean() < bundle.energy(start).mean()
    suite = contract("samplers")
    assert walk in suite.find_samplers()
    assert held_to(suite, cls=walk) >= 7


def test_an_annealed_sampler(added, tmp_path):
    """The variance of known data comes back, to the first order of the step; then that of a run."""
    euler, suite = of("sampler/euler.py", "Euler"), contract("samplers")
    energy = suite.SmoothedNormal()  # standard normal data
    errors = []
    for num_steps in (25, 100):
        x = torch.cat(list(anneal(euler(num_steps=num_steps), energy, 2000, seed=1)))
        errors.append(abs(float(x.std()) - 1))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.1

    tiny = ("energy.width=16", "energy.num_blocks=1")
    overrides = ("sampler.type=thalweg.sampler.euler:Euler", "sampler.num_steps=7", *tiny)
    bundle = train(tmp_path / "run", *overrides, recipe="dual")
    assert bundle.sampler == euler(num_steps=7)
    assert bundle.sample(5).isfinite().all()
    assert not torch.equal(bundle.sample(5), bundle.sample(5, num_steps=3))
    assert held_to(suite, cls=euler) >= 7


def test_an_objective(added, tmp_path):
    """Its loss falls in a run, and on data of a known Gaussian it is least at the true precision."""
    finite = of("objective/finite.py", "FiniteDifferenceScoreMatching")(step=0.05)
    from thalweg.objective.base import Batch, Empty

    batch = Batch(0.5 * torch.randn(4000, 2, generator=generator(0, "x")))
    noise = finite.draw(Empty(), batch, generator(0, "noise"), 0.0)

    def loss(precision):
        return float(finite.loss(lambda x: precision * x.square().sum(1) / 2, Empty(), batch, noise)[0])

    assert loss(4.0) < min(loss(3.0), loss(5.0))

    bundle = train(
        tmp_path / "run",
        "objective.type=thalweg.objective.finite:FiniteDifferenceScoreMatching",
        "train.log_every=1",
        "train.learning_rate=0.01",
        steps=60,
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert bundle.energy(load_data("two-moons").held_out[:9]).isfinite().all()
    suite = contract("objectives")
    example = suite.build(type(finite))
    assert type(finite) in suite.OBJECTIVES
    assert held_to(suite, objective=example, setting=suite.one_step(example)) >= 8


def test_a_network(added, tmp_path):
    """The reloaded energy is the one that was trained, and keeps its bound."""
    name = "energy.type=thalweg.energy.networks.bounded:BoundedEnergy"
    bundle = train(tmp_path / "run", name, "energy.width=16", "energy.bound=2")
    x = torch.randn(50, 2, generator=generator(0, "x"))
    z = bundle.encode(x)
    assert bool(((z.square().sum(1) / 2 - bundle.model(z)).abs() <= 2).all())
    bundle.save_pretrained(tmp_path / "copy")
    assert torch.equal(thalweg.load(tmp_path / "copy").energy(x), bundle.energy(x))
    assert bundle.sample(5, num_steps=3).isfinite().all()
    cls, suite = of("energy/networks/bounded.py", "BoundedEnergy"), contract("energies")
    assert cls in suite.find_energies()
    assert held_to(suite, cls=cls) >= 4


def test_a_noise_conditional_network(added, tmp_path):
    """Normalised, with a density that falls far from the data."""
    name = "energy.type=thalweg.energy.noise_conditional.shallow:ShallowEnergy"
    bundle = train(tmp_path / "run", name, "energy.width=16", "energy.embed=8", "sampler.num_steps=5", recipe="dual")
    rows = load_data("two-moons").held_out[:50]
    assert bundle.log_prob(rows).mean() > bundle.log_prob(rows + 20).mean() + 10
    assert bundle.sample(5).isfinite().all()
    cls, suite = of("energy/noise_conditional/shallow.py", "ShallowEnergy"), contract("energies")
    assert cls in suite.find_energies()
    assert held_to(suite, cls=cls) >= 4


def test_a_data_set(added, tmp_path, monkeypatch):
    found = load_data("iris")
    assert (found.shape, len(found.train), len(found.held_out)) == ((4,), 125, 25)
    assert found.held_out_labels is not None
    assert max(found.held_out_labels.bincount()) - min(found.held_out_labels.bincount()) <= 1
    overrides = ("energy.width=16", "energy.num_blocks=1", "train.precision=fp32", "train.batch_size=32")
    words = ("train", "iris", *overrides, "--steps", "3", "--no-report", "-o", "run")
    assert command(monkeypatch, tmp_path, *words) == 0
    bundle = thalweg.load(tmp_path / "run")
    assert bundle.config["data"]["fingerprint"] == found.fingerprint
    assert bundle.sample(3, num_steps=3).shape == (3, 4)
    with pytest.raises(UserError) as caught:
        load_data("irsi")
    assert "did you mean iris" in str(caught.value)


@pytest.mark.parametrize("suffix", [".mat", ".feather"])
def test_a_file_format(added, tmp_path, monkeypatch, suffix):
    """The rows of the file are those of the same array in npz; a run on it scores another such file."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(60) % 3)
    if suffix == ".mat":
        savemat(tmp_path / "rows.mat", {"x": x, "y": np.arange(60) % 3})
        assert load_data(str(tmp_path / "rows.mat")).label_fingerprint is not None
    else:
        feather.write_feather(arrow_table({name: x[:, i] for i, name in enumerate("abc")}), tmp_path / "rows.feather")
    plain = load_data(str(tmp_path / "rows.npz"))
    if suffix == ".mat":
        assert load_data(str(tmp_path / "rows.mat")).fingerprint == plain.fingerprint
    rows = tmp_path / f"rows{suffix}"
    bundle = train(tmp_path / "run", "energy.width=8", "objective.num_steps=1", data=str(rows))
    assert command(monkeypatch, tmp_path, "score", "run", rows, "-o", "scores.npy") == 0
    scores = np.load(tmp_path / "scores.npy")
    assert np.allclose(scores, bundle.energy(torch.from_numpy(x)), atol=1e-5)
    if suffix == ".feather":
        assert bundle.layout.names == ["a", "b", "c"]
        assert command(monkeypatch, tmp_path, "detect", "fit", rows, "-o", "detector") == 0
    rows.write_bytes(b"nothing of the kind")
    with pytest.raises(DamagedFile) as caught:
        load_data(str(rows))
    assert "\n" not in str(caught.value)


def test_a_stored_application(added, tmp_path, monkeypatch):
    """Fitted and read by its command; the reloaded gate is the same, and lets the share of rows pass that it should."""
    x = load_data("two-moons").held_out[:400]
    np.save(tmp_path / "rows.npy", x)
    assert command(monkeypatch, tmp_path, "gate", "fit", "rows.npy", "-o", "gate", "--steps", "100") == 0
    assert command(monkeypatch, tmp_path, "gate", "check", "gate", "rows.npy", "-o", "passed.csv") == 0
    gate_type, gate = of("apps/gate.py", "Gate"), thalweg.load(tmp_path / "gate")
    assert isinstance(gate, gate_type)
    assert torch.equal(gate.energies(x), gate_type.fit(x, steps=100).energies(x))
    assert float(gate.passes(x).float().mean()) == pytest.approx(0.95, abs=0.01)
    assert float(gate.passes(x + 4).float().mean()) < 0.05
    assert (tmp_path / "passed.csv").read_text().count("True") == int(gate.passes(x).sum())

    train(tmp_path / "run")
    assert command(monkeypatch, tmp_path, "gate", "check", "run", "rows.npy") == 2  # a trained energy is no gate
    assert command(monkeypatch, tmp_path, "gate", "fit", "rows.npy", "-o", "run", "--steps", "1") == 2
    config = json.loads((tmp_path / "gate" / "config.json").read_text())
    (tmp_path / "gate" / "config.json").write_text(json.dumps(config | {"limit": 0}))
    with pytest.raises(DamagedFile):
        thalweg.load(tmp_path / "gate")


@pytest.mark.parametrize(
    ("path", "method", "overrides"),
    [
        ("sampler/walk.py", "draw", "sampler.type={}:RandomWalk"),
        ("objective/finite.py", "loss", "objective.type={}:FiniteDifferenceScoreMatching"),
        ("energy/networks/bounded.py", "forward", "energy.type={}:BoundedEnergy"),
    ],
)
def test_a_part_without_a_method_is_refused(added, mutant, tmp_path, path, method, overrides):
    module = mutant(path, f"def {method}(", f"def {method}_(")
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", overrides.format(module))
    assert str(caught.value.argument).startswith(overrides.partition(".")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "old", "new", "lacks"),
    [
        ("data/sets/iris.py", "def load(", "def load_(", "load"),
        ("data/sets/iris.py", 'name = "iris"', "pass", "name"),
        ("data/sets/iris.py", "(NamedSet)", "", "NamedSet"),
        ("data/sets/iris.py", 'name = "iris"', 'name = "digits"', "digits"),
        ("data/formats/mat.py", "def read(", "def read_(", "read"),
    ],
)
def test_a_set_or_format_that_is_not_whole_is_refused(mutant, path, old, new, lacks):
    mutant(path, old, new)
    options = DataOptions(limit=5) if "sets" in path else DataOptions(drop=["a"])
    with pytest.raises(UserError) as caught:
        load_data("rings" if "sets" in path else "rows.mat", options)
    assert lacks in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stored_type_without_read_is_refused(added, mutant):
    module = mutant("apps/gate.py", "def read(", "def read_(")
    gate = vars(importlib.import_module(module))["Gate"]
    with pytest.raises(TypeError, match="read"):
        gate(torch.nn.Identity(), None, 0.0)
