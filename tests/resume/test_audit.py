"""Nothing that is saved, resumed or loaded runs code: an audit hook sees none of it (trust R14, R17)."""

import json
import os
import pickle
import signal
import sys
from contextlib import suppress

import pytest
import torch

import thalweg
from thalweg.run.fit import Request, fit
from thalweg.training.trainer import Interrupted, Trainer

from .runs import assert_same, in_child, stop_at, trainer


def test_r17_a_run_saves_and_resumes_without_pickle(wholes, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle")

    expected = wholes("pcd-vector")
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(Interrupted):
        trainer("pcd-vector", tmp_path, [stop_at(7)]).fit()
    again = trainer("pcd-vector", tmp_path)
    again.fit()
    assert_same(again, expected)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors"}


EVENTS = {"pickle.find_class", "exec", "compile", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "os.fork"}
EVENTS |= {"os.forkpty", "subprocess.Popen", "code.__new__", "ctypes.dlopen"}
WANT = ["train.batch_size=16", "train.log_every=1", "train.checkpoint_every=4", "train.precision=fp32", "data.limit=99"]
DUAL = ["energy.width=16", "energy.num_blocks=1"]
PCD = ["energy.width=16", "objective.num_steps=2", "objective.buffer_size=64"]


def whole_life(folder, recipe, overrides):
    """A run that is stopped and resumed, its bundle loaded, sampled and scored."""
    request = Request(data="two-moons", recipe=recipe, steps=12, overrides=overrides)
    stop, report = [6], Trainer._report

    def stopping(self, *args):
        report(self, *args)
        if self.state.step in stop:
            stop.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer._report = stopping
    with suppress(Interrupted):
        fit(request, folder, tensorboard=False)
    assert not stop
    Trainer._report = report
    fit(request, folder, resume=True, tensorboard=False)
    bundle = thalweg.load(folder)
    return bundle.score(bundle.sample(8, seed=1))


def audited(folder, recipe, overrides):
    """In this process, from now on: (what a hook sees of a run, what it sees of a pickle and of `exec`)."""
    seen, watching = [], []

    def watch(event, args):
        if watching and event in EVENTS:
            frame, where = sys._getframe(1), []
            while frame and len(where) < 6:
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                frame = frame.f_back
            seen.append([event, str(args)[:100], where])

    sys.addaudithook(watch)
    whole_life(folder / "first", recipe, overrides)  # imports what is imported late
    watching.append(True)
    whole_life(folder / "second", recipe, overrides)
    found = list(seen)
    seen.clear()
    pickle.loads(b"cbuiltins\nlen\n.")
    exec("1")
    return found, [event for event, *_ in seen]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("recipe", "more"), [pytest.param("dual", DUAL, marks=pytest.mark.slow), ("pcd", PCD)])
def test_r14_an_audit_hook_sees_no_code_run_while_saving_resuming_and_loading(tmp_path, recipe, more):
    """In a process of its own, as a hook cannot be taken away."""

    def work():
        found = audited(tmp_path, recipe, [*WANT, *more])
        (tmp_path / "found.json").write_text(json.dumps(found))

    assert in_child(work) == 0
    found, control = json.loads((tmp_path / "found.json").read_text())
    assert found == []
    assert control == ["pickle.find_class", "compile", "exec"]
