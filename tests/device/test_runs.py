"""The device of a run: told on the command line, kept in the plan, no property of the run; compiled losses."""

import json

import pytest
import torch

from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.loader import Loader, Prefetcher
from thalweg.data.transform import Identity
from thalweg.objective.base import Compilable
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.run.fit import Request, fit
from thalweg.run.in_memory import optimise
from thalweg.training.guard import Guard
from thalweg.training.settings import TrainSettings
from thalweg.training.step import Update, run_steps
from thalweg.training.trainer import Interrupted

from ..contract.test_objectives import OBJECTIVES, Energy, build
from .simulated import GPU, REAL, gpu
from .watch import DEVICE

CHAINS = ["train.batch_size=16", "train.precision=fp32", "energy.width=16", "data.limit=60", "train.log_every=4"]
CHAINS += ["train.guard.every=3", "objective.buffer_size=64", "objective.num_steps=3"]


class StopAt:
    """A progress bar that ends the run at a logged step."""

    def __init__(self, step):
        self.last = step

    def start(self, total, done):
        pass

    def advance(self, step, figures):
        if step == self.last:
            raise Interrupted("", 2)

    def stop(self):
        pass


def run_of(folder, device, *, resume=False, stop=None):
    request = Request(
        data="two-moons", recipe="pcd", steps=12, checkpoint_every=3, overrides=CHAINS, device=device, seed=1
    )
    progress = None if stop is None else StopAt(stop)
    return fit(request, folder, tensorboard=False, resume=resume, progress=progress)


def weights_of(folder):
    return store.read_tensors(folder / "model.safetensors")


def test_a_run_on_a_gpu_is_that_on_the_cpu_and_goes_on_on_either(tmp_path, caplog):
    """Whole, stopped and resumed there, and resumed on the CPU: the simulated GPU has the CPU's numbers."""
    run_of(tmp_path / "cpu", "cpu")
    with gpu():
        assert run_of(tmp_path / "gpu", "cuda").device.type == "cuda"
        for folder in ("same", "other"):
            with pytest.raises(Interrupted):
                run_of(tmp_path / folder, "cuda", stop=8)
        run_of(tmp_path / "same", "cuda", resume=True)
    assert "goes on on" not in caplog.text
    run_of(tmp_path / "other", "cpu", resume=True)
    assert caplog.text.count("the run began on cuda and goes on on cpu") == 1
    config, plan = (store.read_json(tmp_path / "other" / name) for name in ("config.json", "plan.json"))
    assert plan["device"] == "cuda"
    assert "device" not in json.dumps(config["run"])
    wanted = weights_of(tmp_path / "gpu")
    assert all(torch.equal(value, wanted[name]) for name, value in weights_of(tmp_path / "same").items())
    if not REAL:  # a GPU draws other numbers
        for folder in ("cpu", "other"):
            for name, value in weights_of(tmp_path / folder).items():
                torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(REAL, reason="a GPU counts no reads")
def test_steps_on_a_gpu_read_once_where_they_are_logged():
    x, chains = torch.randn(60, 3, generator=generator(0, "x")), build(ContrastiveDivergence)
    given = TrainSettings.model_validate({"steps": 21, "batch_size": 8, "precision": "fp32", "guard": {"every": 10}})
    with gpu() as reads:
        update = Update(chains, Loader(x, batch_size=8, seed=0), Identity(), given, device=GPU)
        state, guard = update.first_state(Energy(3, False)), Guard(given.guard, chains)
        del reads[:]
        told = [bool(metrics) for metrics in run_steps(update, state, guard, 21, "fp32")]
        # torch's own clipping and optimiser group tensors by their device in C++, which sees through the simulation
        assert [name for name in reads if name != "to"] == ["tolist"] * 4
    assert [n for n, is_told in enumerate(told, 1) if is_told] == [1, 10, 20, 21]
    assert state.guard.candidate["step"] == 20


def test_the_next_rows_are_sent_while_a_step_is_computed_and_by_number():
    loader, asked = Loader(torch.arange(40.0)[:, None], torch.arange(40), batch_size=4, seed=0), []

    class Spy:
        def batch(self, step):
            asked.append(step)
            return loader.batch(step)

    ahead = Prefetcher(Spy(), torch.device("cpu"))
    for step in (0, 1, 2, 7, 8):
        x, labels = ahead.batch(step)
        assert torch.equal(x, loader.batch(step)[0])
        assert torch.equal(labels, loader.batch(step)[1])
    assert asked == [0, 1, 2, 3, 7, 8, 9]
    x, labels = Prefetcher(loader, DEVICE).batch(3)
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
