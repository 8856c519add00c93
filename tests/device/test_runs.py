"""The device of a run: told on the command line, kept in the plan, no property of the run; compiled losses."""

import json

import pytest
import torch

from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.loader import Ahead, Loader
from thalweg.objective.base import Compilable
from thalweg.run.fit import Request, fit
from thalweg.run.in_memory import optimise
from thalweg.training.settings import TrainSettings
from thalweg.training.trainer import Interrupted

from ..contract.test_objectives import OBJECTIVES, Energy, build
from .watch import DEVICE

OVERRIDES = ["train.batch_size=16", "train.precision=fp32", "energy.width=16", "energy.num_blocks=1", "data.limit=60"]
GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@GPU
def test_a_gpu_that_is_not_there_is_refused_in_one_line_before_any_file(call, tmp_path):
    code, _, said = call("train", "two-moons", "--device", "cuda", "--steps", "3", "-o", tmp_path / "run")
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith("thalweg: device='cuda': ")
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_on_another_device_says_so_and_its_config_names_none(tmp_path, caplog):
    request = Request(
        data="two-moons", steps=6, checkpoint_every=2, overrides=[*OVERRIDES, "train.log_every=1"], device="cpu"
    )

    class Stop:
        def start(self, total, done):
            pass

        def advance(self, step, figures):
            if step == 4:
                raise Interrupted("", 2)

        def stop(self):
            pass

    with pytest.raises(Interrupted):
        fit(request, tmp_path / "run", tensorboard=False, progress=Stop())
    plan = store.read_json(tmp_path / "run" / "plan.json")
    assert plan["device"] == "cpu"
    assert "device" not in json.dumps(store.read_json(tmp_path / "run" / "config.json"))
    store.write_json(tmp_path / "run" / "plan.json", {**plan, "device": "cuda"})
    fit(request, tmp_path / "run", tensorboard=False, resume=True)
    assert "the run began on cuda and goes on on cpu" in caplog.text


def test_the_next_rows_are_sent_while_a_step_is_computed_and_by_number():
    loader, asked = Loader(torch.arange(40.0)[:, None], torch.arange(40), batch_size=4, seed=0), []

    class Spy:
        def batch(self, step):
            asked.append(step)
            return loader.batch(step)

    ahead = Ahead(Spy(), torch.device("cpu"))
    for step in (0, 1, 2, 7, 8):
        x, labels = ahead.batch(step)
        assert torch.equal(x, loader.batch(step)[0])
        assert torch.equal(labels, loader.batch(step)[1])
    assert asked == [0, 1, 2, 3, 7, 8, 9]
    x, labels = Ahead(loader, DEVICE).batch(3)
    assert x.device.type == labels.device.type == DEVICE.type


@pytest.mark.parametrize("cls", OBJECTIVES)
def test_a_loss_that_says_so_is_compiled_whole_and_others_are_refused(cls, monkeypatch):
    """By the compiler's front end; what its back ends make of it is benchmarks/device.py's to tell."""
    objective, compile, made = build(cls), torch.compile, []
    x = torch.randn(40, 3, generator=generator(0, "x"))
    labels = torch.arange(40) % 2
    given = {"steps": 2, "batch_size": 8, "precision": "fp32"}

    def weights(**more):
        torch.manual_seed(0)
        settings = TrainSettings.model_validate({**given, **more})
        net = optimise(Energy(3, objective.noisy), objective, x, settings, labels=labels)
        return torch.cat([p.flatten() for p in net.parameters()])

    def front(loss):
        made.append(loss)
        torch._dynamo.reset()
        return compile(loss, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", front)
    if isinstance(objective, Compilable) and objective.compiles:
        torch.testing.assert_close(weights(compile=True), weights())
        assert len(made) == 1
    else:
        with pytest.raises(UserError) as caught:
            weights(compile=True)
        assert caught.value.argument == "train.compile"
