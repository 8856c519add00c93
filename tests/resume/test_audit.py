"""Nothing that is saved, resumed or loaded runs code: an audit hook sees none of it (trust R14, R17)."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from thalweg.train.trainer import Interrupted

from .runs import assert_same, stop_at, trainer


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


# The first round imports what is imported late; the hook watches the second, and last a pickle, to show that it sees.
SCRIPT = """
import json, os, pickle, signal, sys
from pathlib import Path
import torch
import thalweg
from thalweg.apps.fit import Request, fit
from thalweg.train.trainer import Interrupted, Trainer

EVENTS = {"pickle.find_class", "exec", "compile", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "os.fork",
          "os.forkpty", "subprocess.Popen", "code.__new__", "ctypes.dlopen"}
WANT = ["train.batch_size=16", "train.log_every=1", "train.checkpoint_every=4", "train.precision=fp32", "data.limit=99",
        *sys.argv[3:]]
stop = [0]
report = Trainer._report
def stopping(self, tracker, metrics, plan):
    report(self, tracker, metrics, plan)
    if self.state.step == stop[0]:
        os.kill(os.getpid(), signal.SIGTERM)
Trainer._report = stopping

def round(folder):
    request = Request(data="two-moons", recipe=sys.argv[2], steps=12, overrides=WANT)
    stop[0] = 6
    try:
        fit(request, folder, tensorboard=False)
    except Interrupted:
        stop[0] = 0
    assert stop[0] == 0
    fit(request, folder, resume=True, tensorboard=False)
    bundle = thalweg.load(folder)
    return bundle.score(bundle.sample(8, seed=1))

seen, watching = [], False
def watch(event, args):
    if watching and event in EVENTS:
        frame, where = sys._getframe(1), []
        while frame and len(where) < 6:
            where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            frame = frame.f_back
        seen.append([event, str(args)[:100], where])
sys.addaudithook(watch)
home = Path(sys.argv[1])
round(home / "first")
watching = True
round(home / "second")
watching = False
found = list(seen)
seen.clear()
watching = True
pickle.loads(b"cbuiltins\\nlen\\n.")
exec("1")
watching = False
print(json.dumps([found, [event for event, *_ in seen]]))
"""

DUAL = ["energy.width=16", "energy.num_blocks=1"]
PCD = ["energy.width=16", "objective.num_steps=2", "objective.buffer_size=64"]


@pytest.mark.parametrize(("recipe", "more"), [pytest.param("dual", DUAL, marks=pytest.mark.slow), ("pcd", PCD)])
def test_r14_an_audit_hook_sees_no_code_run_while_saving_resuming_and_loading(tmp_path, recipe, more):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), recipe, *more],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found, control = json.loads(done.stdout.splitlines()[-1])
    assert found == []
    assert control == ["pickle.find_class", "compile", "exec"]
