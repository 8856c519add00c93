"""Bundles and recipes that name classes of others: no code runs unless someone trusts it, and then all of it works."""

import functools
import json
import sys
from types import ModuleType

import pytest
import torch
import typer
from torch import nn

import thalweg
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.dataset import data_of
from thalweg.bundle.files import FILES, load, load_as
from thalweg.cli.main import app
from thalweg.core import store
from thalweg.core.errors import DamagedFile, NotTrusted, UserError
from thalweg.core.rng import generator
from thalweg.core.weights import LEAST_BYTES, Stored, Unfit, require_fit
from thalweg.energy.networks.mlp import MLPEnergy

# A package with a part of each kind; it leaves a file when it is imported.
PARTS = '''
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from thalweg.data.sets.base import NamedSet, RawData
from thalweg.data.transform import Standardize
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.score.score import DenoisingScoreMatching
from thalweg.sampler.langevin import ULA

Path(__file__).with_name("imported").touch()

class Net(MLPEnergy):
    pass

class Plain(nn.Module):
    """Takes no shape, has none, and reads the values of a tensor."""
    def __init__(self, width: int = 4):
        super().__init__()
        self.scales = [float(s) for s in torch.linspace(1, 2, 3)]
        self.f = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 1))
    def forward(self, x):
        return self.scales[-1] * self.f(x).squeeze(1) + 0.05 * x.square().sum(1)

@dataclass(frozen=True, kw_only=True)
class Matching(DenoisingScoreMatching):
    sigma: float = 0.4

@dataclass(frozen=True, kw_only=True)
class Walk(ULA):
    step_size: float = 0.02

@dataclass(frozen=True, kw_only=True)
class Scale(Standardize):
    pass

@dataclass(frozen=True, kw_only=True)
class Shake:
    size: float = 0.01
    def __call__(self, x, generator, progress):
        return x + self.size * torch.randn(x.shape, generator=generator)

class Rings(NamedSet):
    name = "rings"
    def load(self, seed):
        angle = torch.linspace(0, 6.28, 200)
        return RawData(torch.stack([angle.cos(), angle.sin()], 1), None, "a ring")
'''
RECIPE = """
base: pcd-vector
augment: {type: "strange.parts:Shake"}
transform: {type: "strange.parts:Scale"}
energy: {type: "strange.parts:Plain", width: 6}
objective: {type: "strange.parts:Matching"}
sampler: {type: "strange.parts:Walk"}
train: {steps: 3, precision: fp32, batch_size: 16}
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """The package `strange` in the current folder, which is not on the path; whether it was imported."""
    package = tmp_path / "strange"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(PARTS)
    (package / "ring.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".", str(tmp_path))])
    yield lambda: (package / "imported").exists()
    for name in [name for name in sys.modules if name.partition(".")[0] == "strange"]:
        del sys.modules[name]


@pytest.fixture
def moons(chains, tmp_path):
    """A copy of a small bundle of points in the plane."""
    chains.save_pretrained(tmp_path / "moons")
    return tmp_path / "moons"


def edit(folder, *, given=None, weights=None, **run):
    """Change parts of a config's run and seal the folder again, as a stranger would."""
    config = json.loads((folder / "config.json").read_text())
    config["run"] |= run
    config |= {} if given is None else {"given": given}
    store.write_json(folder / "config.json", config)
    if weights is not None:
        store.write_tensors(folder / "model.safetensors", weights)
    store.seal(folder, [name for name in FILES if (folder / name).exists()])


def x():
    return torch.randn(5, 2, generator=generator(0, "x"))


def refused(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value


NAMES = ["strange.parts:Net", "strange:Net", "os:system", "subprocess:Popen", "strange.parts:nn", "__main__:Net"]


@pytest.mark.parametrize("part", ["energy", "sampler", "transform"])
@pytest.mark.parametrize("name", NAMES)
def test_r15_a_bundle_of_a_stranger_runs_no_code(moons, strange, part, name):
    edit(moons, **{part: {"type": name, "command": "touch x"}})
    for act in (lambda: load(moons), lambda: load_as(moons, Bundle), lambda: Bundle.from_pretrained(moons)):
        assert refused(act).argument.startswith(f"run.{part}")
    edit(moons, **{part: {"type": "thalweg.energy.wrappers:Sum", "energies": [{"type": name}]}})
    refused(lambda: load(moons))
    assert not strange()


def test_r15_a_config_whose_own_type_is_a_strangers_runs_no_code(moons, strange):
    config = json.loads((moons / "config.json").read_text())
    store.write_json(moons / "config.json", {**config, "type": "strange.parts:Net"})
    store.seal(moons, [name for name in FILES if (moons / name).exists()])
    assert refused(lambda: load(moons)).hint is not None
    assert not strange()


def test_r15_a_recipe_of_a_stranger_runs_no_code(strange, call, tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    short = ("--steps", 2, "--no-report", "-o", "run")
    for words in (
        ("two-moons", "--recipe", "mine.yaml"),
        ("two-moons", "--recipe", "strange:ring"),
        ("strange.parts:Rings",),
        ("two-moons", "energy.type=strange.parts:Net"),
        ("two-moons", "sampler={type: 'strange.parts:Walk'}"),
    ):
        code, _, lines = call("train", *words, *short)
        assert (code, len(lines)) == (2, 1), lines
    assert not strange()
    assert not (tmp_path / "run").exists()


def test_trust_is_for_one_call(moons, chains, strange):
    edit(moons, energy={**chains.config["run"]["energy"], "type": "strange.parts:Net"})
    error = refused(lambda: load(moons))
    assert "--trust strange" in str(error.hint)
    found = load(moons, trust=("strange",))
    assert type(found.model).__module__ == "strange.parts"
    assert torch.equal(found.energy(x()), chains.energy(x()))
    assert Bundle.from_pretrained(moons, trust=["strange"]).model is not found.model
    refused(lambda: load(moons))
    assert refused(lambda: load(moons, trust="strange")).argument == "trust"


def test_r15_nothing_from_the_hub_is_trusted(moons, chains, strange, monkeypatch):
    edit(moons, energy={**chains.config["run"]["energy"], "type": "strange.parts:Net"})
    monkeypatch.setattr("thalweg.bundle.hub.download", lambda name, revision: moons)
    assert isinstance(refused(lambda: load("owner/bundle")), NotTrusted)
    assert torch.equal(load("owner/bundle", energy=MLPEnergy(width=8)).energy(x()), chains.energy(x()))
    assert not strange()


def test_all_parts_may_be_anothers(strange, call, tmp_path):
    """A package in the current folder: its recipe, its data set and a part of each kind, trained, sampled, scored."""
    words = ("train", "strange.parts:Rings", "--recipe", "strange:ring", "--no-report", "energy.width=5")
    code, _, lines = call(*words, "--trust", "strange")
    assert code == 0, lines
    run = tmp_path / "runs" / "Rings-ring"
    config = json.loads((run / "config.json").read_text())["run"]
    parts = ("augment", "transform", "energy", "objective", "sampler")
    assert {config[part]["type"].partition(":")[0] for part in parts} == {"strange.parts"}
    assert config["energy"]["width"] == 5
    (tmp_path / "strange" / "imported").unlink()
    for name in [name for name in sys.modules if name.partition(".")[0] == "strange"]:
        del sys.modules[name]

    sample = ("sample", run, "-n", 3, "--num-steps", 2, "-o", "drawn.csv")
    code, _, lines = call(*sample)
    assert (code, len(lines)) == (2, 1)
    assert "--trust strange" in lines[0]
    assert not strange()
    assert call(*sample, "--trust", "strange")[0] == 0
    assert call("score", run, "drawn.csv", "--trust", "strange")[0] == 0
    assert call("landscape", run, "--size", 8, "--trust", "strange", "-o", "l.png")[0] == 0
    code, _, lines = call(*words, "--resume")
    assert (code, len(lines)) == (2, 1)
    assert "--trust strange" in lines[0]
    assert "config.json" not in lines[0], "the file is not damaged"
    assert call(*words, "--resume", "--trust", "strange")[0] == 0


def test_every_command_that_opens_a_run_takes_trust():
    def walk(command):
        return (
            [leaf for part in command.commands.values() for leaf in walk(part)]
            if hasattr(command, "commands")
            else [command]
        )

    opening = {one.name: {p.name for p in one.params} for one in walk(typer.main.get_command(app))}
    opening = {name: names for name, names in opening.items() if "run" in names or name == "train"}
    assert {"train", "sample", "score", "evaluate", "classify", "inpaint", "landscape", "choose"} <= opening.keys()
    assert [name for name, names in opening.items() if "trust" not in names] == []


@pytest.mark.parametrize("name", ["os", "torch", "no_such_package_anywhere", "a b"])
def test_a_name_that_cannot_be_trusted_is_one_line(moons, call, name):
    code, _, lines = call("sample", moons, "-n", 2, "-o", "x.csv", "--trust", name)
    assert (code, len(lines)) == (2, 1), lines


def test_recipes_of_a_package_are_found_by_name_without_an_import(strange, call):
    for name, part in (
        ("strange:rnig", "ring"),
        ("strange:../ring", "ring"),
        ("nobody:ring", "nobody"),
        ("os:x", "os"),
    ):
        code, _, lines = call("train", "two-moons", "--recipe", name, "--trust", "strange", "--steps", 1)
        assert (code, len(lines)) == (2, 1), lines
        assert part in lines[0]
    assert not strange()


class TestGiven:
    """`energy=`: the module is the caller's, and nothing is imported for it."""

    def test_its_weights_are_the_stored_ones(self, moons, chains, strange):
        edit(moons, energy={"type": "strange.parts:Net", "command": "touch x"})
        module = MLPEnergy(width=8)
        found = load(moons, energy=module)
        assert found.model is not module  # a copy: the module may be trained on, or serve another bundle
        assert all(p.requires_grad for p in module.parameters())
        for energy in (
            MLPEnergy(width=8),
            functools.partial(MLPEnergy, width=8),
            functools.partial(MLPEnergy, width=8, shape=(2,)),
        ):
            assert torch.equal(load(moons, energy=energy).energy(x()), chains.energy(x()))
        assert torch.equal(found.sample(3, num_steps=2), chains.sample(3, num_steps=2))
        assert Bundle.from_pretrained(moons, energy=MLPEnergy(width=8)).score(x())["p_value"].shape == (5,)
        assert not strange()

    @pytest.mark.parametrize("change", ["wider", "deeper", "named otherwise"])
    def test_one_that_does_not_fit_is_refused_and_left_as_it_was(self, moons, change):
        module = {"wider": MLPEnergy(width=9), "deeper": MLPEnergy(width=8, depth=4)}.get(change)
        module = module or nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
        before = {name: value.clone() for name, value in module.state_dict().items()}
        error = refused(lambda: load(moons, energy=module))
        assert error.argument == "energy"
        assert "net." in str(error) or "weight" in str(error)
        assert module.training
        assert all(p.requires_grad for p in module.parameters())
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())

    @pytest.mark.parametrize(
        "energy", [3, "mlp", lambda: MLPEnergy(), functools.partial(int, 3), MLPEnergy.forward, int]
    )
    def test_what_is_no_module_is_refused(self, moons, energy):
        assert refused(lambda: load(moons, energy=energy)).argument == "energy"

    def test_arguments_that_a_class_needs_must_be_bound(self, moons):
        class Needs(nn.Module):
            def __init__(self, size):
                super().__init__()

        assert refused(lambda: load(moons, energy=Needs)).argument == "energy"

    @pytest.mark.parametrize(
        "name", ["__main__:Net", "strange.parts:make.<locals>.Net", "strange.parts:Net", "gone:Net"]
    )
    def test_a_run_of_a_module_must_be_given_it_again(self, moons, strange, call, name):
        edit(moons, given=["energy", "data"], energy={"type": name})
        error = refused(lambda: load(moons))
        assert error.argument == "energy"
        assert "energy=" in str(error.hint)
        code, _, lines = call("sample", moons, "-n", 2, "-o", "x.csv")
        assert (code, len(lines)) == (2, 1)
        assert not strange()
        assert load(moons, energy=functools.partial(MLPEnergy, width=8)).shape == (2,)

    def test_a_module_that_the_config_can_rebuild_need_not_be_given(self, moons, chains, strange):
        edit(moons, given=["energy"], energy={"type": "strange.parts:Net", "width": 8})
        assert torch.equal(load(moons, trust=("strange",)).energy(x()), chains.energy(x()))
        edit(moons, given=["energy"], energy={"type": "strange.parts:Net"})  # with an argument that was not kept
        assert refused(lambda: load(moons, trust=("strange",))).argument == "energy"

    @pytest.mark.parametrize("given", [3, None, "energy", {"energy": 1}, [[]]])
    def test_odd_lists_of_what_was_given_do_no_harm(self, moons, given):
        edit(moons, given=given)
        assert data_of(load(moons)).shape == (2,)

    def test_a_network_alone_is_put_into_the_energy_around_it(self, moons, chains, monkeypatch):
        class Around(nn.Module):
            def __init__(self, *, network, shape, factor=1.0):
                super().__init__()
                self.inner, self.shape, self.factor = network, shape, factor

            def forward(self, x):
                return self.factor * self.inner(x)

        module = ModuleType("thalweg.energy.around")
        Around.__module__, Around.__qualname__, module.Around = module.__name__, "Around", Around
        monkeypatch.setitem(sys.modules, module.__name__, module)
        weights = {f"inner.{name}": value for name, value in chains.model.state_dict().items()}
        spec = {"type": "thalweg.energy.around:Around", "factor": 2.0, "network": {"type": "__main__:Net"}}
        edit(moons, given=["energy"], energy=spec, weights=weights)
        refused(lambda: load(moons))
        wrapped = Around(network=MLPEnergy(width=8), shape=(2,), factor=2.0)
        for energy in (MLPEnergy(width=8), wrapped):
            assert torch.equal(load(moons, energy=energy).model(x()), 2 * chains.model(x()))
        assert refused(lambda: load(moons, energy=MLPEnergy(width=9))).argument == "energy"


class TestConstructorsThatReadValues:
    """They cannot run on the meta device."""

    class Reads(nn.Module):
        def __init__(self, width=8, copies=1):
            super().__init__()
            assert torch.ones(3).sum().item() == 3
            self.layers = nn.ModuleList(nn.Linear(2, width) for _ in range(copies))

    def stored(self, **sizes):
        return {name: Stored("F32", tuple(value.shape)) for name, value in self.Reads(**sizes).state_dict().items()}

    def test_those_of_others_run_on_the_cpu(self):
        before = torch.random.get_rng_state()
        stored = self.stored()
        torch.random.set_rng_state(before)
        require_fit(self.Reads, stored, foreign=True)
        assert torch.equal(torch.random.get_rng_state(), before)
        with pytest.raises(Unfit):
            require_fit(self.Reads, stored)
        with pytest.raises(Unfit):
            require_fit(functools.partial(self.Reads, width=9), stored, foreign=True)

    @pytest.mark.parametrize("sizes", [{"width": LEAST_BYTES}, {"width": 10**15}, {"width": 10**6, "copies": 10**9}])
    def test_they_take_no_more_memory_than_the_weights_justify(self, sizes):
        """Mutant: no limits on the CPU, where 10^6 numbers, 10^9 times, would be taken."""
        with pytest.raises(Unfit):
            require_fit(functools.partial(self.Reads, **sizes), self.stored(), foreign=True)

    def test_their_own_faults_are_their_own(self, moons):
        def fails():
            raise KeyError("a fault of its own")

        with pytest.raises(KeyError):
            require_fit(fails, self.stored(), foreign=True)


def test_an_energy_is_given_to_trained_energies_alone(tmp_path):
    from thalweg.apps.rerank.reranker import EnergyReranker
    from thalweg.apps.rerank.settings import RatioSettings

    data = torch.rand(40, 2)
    quick = RatioSettings(ensemble=2, steps=2, hidden=4, batch=8, noise=0.3)
    EnergyReranker(settings=quick).fit(data, 0.6 * data).save_pretrained(tmp_path / "judge")
    assert refused(lambda: thalweg.load(tmp_path / "judge", energy=MLPEnergy())).argument == "energy"


def test_weights_that_are_none_of_the_configs_are_still_a_damaged_file(moons):
    edit(moons, energy={"type": "thalweg.energy.networks.mlp:MLPEnergy", "width": 9})
    with pytest.raises(DamagedFile):
        load(moons)
