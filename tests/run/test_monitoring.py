"""The monitor of a real run: no bit of a healthy one changes, a collapse is found and cured, a resumed run agrees."""

import json
import os
import signal

import pytest
import torch

from thalweg.core import store
from thalweg.core.errors import Diverged, UserError
from thalweg.core.json_lines import JsonLines
from thalweg.core.rng import generator
from thalweg.data.in_memory import given_dataset
from thalweg.data.toy import eight_gaussians
from thalweg.monitor.diversity import Diversity
from thalweg.run import fit as module
from thalweg.run.fit import Request, fit
from thalweg.run.given import Given
from thalweg.training.trainer import Interrupted

STEPS, PLANT = 220, 90
SMALL = ["train.batch_size=64", "train.precision=fp32", "train.log_every=50", "train.checkpoint_every=55"]
CHAINS = [*SMALL, "energy.width=32", "energy.depth=2", "objective.num_steps=4", "objective.buffer_size=128"]
CHAINS += ["objective.reinit=0.0", "objective.sampler.step_size=0.002", "monitor.every=10", "monitor.num_samples=100"]
SCORE = [*SMALL, "energy.width=32", "energy.num_blocks=1", "energy.embed=8", "train.ema=0.9", "monitor.every=15"]
RECIPES = {"pcd": CHAINS, "dual": SCORE}


@pytest.fixture(scope="module")
def data():
    return given_dataset(eight_gaussians(700, generator(0, "toy")), held_out=0.4)


def run(folder, data, recipe, *more, steps=STEPS, resume=False):
    request = Request(
        data="data in memory", recipe=recipe, steps=steps, overrides=[*RECIPES[recipe], *more], given=Given(data=data)
    )
    return fit(request, folder, resume=resume, tensorboard=False)


def hook(monkeypatch, act):
    """Call `act(state)` after each step, in place of drawing previews."""
    monkeypatch.setattr(module, "Previews", lambda *_: lambda state, plan: act(state))


@pytest.fixture(autouse=True)
def _no_previews(monkeypatch):
    hook(monkeypatch, lambda state: None)


def read_rows(folder):
    return JsonLines(folder / "monitor.jsonl").read()


def weights(folder):
    return store.read_tensors(folder / "model.safetensors")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a | b)


def one_mode(state):
    """All chains at one of the eight modes, once."""
    if state.step == PLANT:
        x = state.objective.x
        far = (x - x[:1]).norm(dim=1)
        near = x[far.argsort()[: len(x) // 8]]
        state.objective = state.objective._replace(x=near.repeat(8, 1)[: len(x)] + 0.02 * x)


def broken(state):
    """Weights as after a fault of the memory, once: of the network and of its average."""
    if state.step == PLANT:
        with torch.no_grad():
            for module in (state.energy, state.average):
                for weight in module.parameters():
                    weight.mul_(10.0)


FAULTS = {"pcd": one_mode, "dual": broken}


def kept(folder, name):
    """A figure at the last look, over that at the best one before the fault."""
    rows = read_rows(folder)
    return rows[-1]["figures"][name] / max(row["figures"][name] for row in rows if row["step"] < PLANT)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_planted_collapse_is_cured_with_the_loop_and_stays_without(recipe, data, tmp_path, monkeypatch, caplog):
    """The second run, whose policy is to warn, is the mutant: it does nothing."""
    hook(monkeypatch, FAULTS[recipe])
    run(tmp_path / "on", data, recipe)
    said = caplog.text
    run(tmp_path / "off", data, recipe, "monitor.policy=warn")
    acted = [row for row in read_rows(tmp_path / "on") if row["action"]]
    assert PLANT < acted[0]["step"] <= PLANT + 200
    assert acted[0]["alarm"] in ("variety", "noise")
    assert acted[0]["sentence"] in said
    assert acted[0]["action"] in said
    figure = {"pcd": "histogram", "dual": "coverage"}[recipe]
    assert kept(tmp_path / "on", figure) > 0.8
    assert kept(tmp_path / "off", figure) < 0.7


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_healthy_run_has_the_same_bits_with_the_loop_and_without(recipe, data, tmp_path):
    run(tmp_path / "on", data, recipe, steps=100)
    run(tmp_path / "off", data, recipe, "monitor.policy=none", steps=100)
    assert same(weights(tmp_path / "on"), weights(tmp_path / "off"))
    rows = read_rows(tmp_path / "on")
    assert [row["step"] for row in rows] == list(range(rows[0]["step"], 101, rows[0]["step"]))
    assert all(row["alarm"] is None and row["action"] is None for row in rows)
    assert not (tmp_path / "off" / "monitor.jsonl").exists()


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("stop", [PLANT + 6, PLANT + 50], ids=["before the verdict", "after"])
def test_a_resumed_run_repeats_its_verdicts_and_ends_with_the_same_bits(recipe, stop, data, tmp_path, monkeypatch):
    hook(monkeypatch, FAULTS[recipe])
    run(tmp_path / "whole", data, recipe, steps=160)

    def stopped(state):
        FAULTS[recipe](state)
        if state.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    hook(monkeypatch, stopped)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", data, recipe, steps=160)
    with (tmp_path / "parts" / "monitor.jsonl").open("a") as file:  # of a process that was killed later
        file.write('{"step": 9999, "figures": {}}\n{"step": 99')
    hook(monkeypatch, FAULTS[recipe])
    run(tmp_path / "parts", data, recipe, steps=160, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = ([{**row, "seconds": 0} for row in read_rows(tmp_path / name)] for name in ("whole", "parts"))
    assert whole == parts
    assert any(row["action"] for row in whole)


def test_under_stop_the_run_ends_and_its_last_row_says_so(data, tmp_path, monkeypatch):
    hook(monkeypatch, one_mode)
    with pytest.raises(Diverged, match="lost variety"):
        run(tmp_path, data, "pcd", "monitor.policy=stop")
    assert read_rows(tmp_path)[-1]["action"] == "stopped"


def test_a_look_that_fails_ends_no_run(data, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no room for distances")

    monkeypatch.setattr(Diversity, "figures", fail)
    run(tmp_path, data, "pcd", steps=40)
    assert "no look at the samples at step 20: no room for distances" in caplog.text
    assert json.loads((tmp_path / "monitor.jsonl").read_text().splitlines()[-1])["figures"] == {}


@pytest.mark.parametrize(
    ("asked", "argument", "said"),
    [
        ("monitor.policy=shout", "monitor.policy", "must be 'none'"),
        ("monitor.every=0", "monitor.every", "greater than or equal to 1"),
        ("monitor.polisy=warn", "monitor.polisy", "no such key"),
        ("monitor.judge=vision", "monitor.judge", "must be statistical"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(asked, argument, said, data, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        run(tmp_path / "a", data, "pcd", asked)
    assert caught.value.argument == argument
    assert not (tmp_path / "a").exists()


def test_of_a_vision_judge_a_key_in_the_wrong_place_is_not_repeated(tmp_path, monkeypatch):
    """And what YAML makes of `off` is the policy `none`."""
    pictures = given_dataset(torch.rand(700, 1, 8, 8, generator=generator(0, "pictures")), held_out=0.4)
    for vision in ("{model: X, send_images: true, api_key: sk-SECRET}", "{model: X, key_variable: sk-SECRET}"):
        asked = Request(
            data="data in memory", recipe="pcd-conv", steps=4, given=Given(data=pictures),
            overrides=["monitor.judge=vision", f"monitor.vision={vision}"],
        )  # fmt: skip
        with pytest.raises(UserError, match=r"monitor\.vision") as caught:
            fit(asked, tmp_path / "a")
        assert "SECRET" not in str(caught.value)
    off = module.settings(Request(data="two-moons", recipe="pcd", steps=4, overrides=["monitor.policy=off"]), "vector")
    assert off.monitor.policy == "none"


def test_from_python_the_settings_are_a_mapping():
    import thalweg

    told = {"monitor": {"judge": "vision", "vision": {"model": "X", "send_images": True}}}
    with pytest.raises(UserError, match="no run folder") as caught:
        thalweg.train("pcd-conv", torch.rand(700, 1, 8, 8), steps=4, **told)
    assert caught.value.argument == "monitor.judge"
    with pytest.raises(UserError, match="policy"):
        thalweg.train("pcd", "two-moons", steps=4, monitor="warn")
