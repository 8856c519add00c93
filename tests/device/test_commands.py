"""`--device` on every command: refused in one line where the device is not there, and used where it is."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import typer

from thalweg.cli.main import app
from thalweg.core.rng import generator

from .simulated import REAL, gpu


def commands(found, words=()):
    """(words, command) of each command of the command line, those of groups too."""
    inner = getattr(found, "commands", None)
    if inner is None:
        yield words, found
    for name, command in (inner or {}).items():
        yield from commands(command, (*words, name))


COMMANDS = dict(commands(typer.main.get_command(app)))
del COMMANDS[("watch",)]  # which computes nothing


def wanted(command):
    """What a command does not go without, as words."""
    for parameter in command.params:
        if parameter.required:
            option = parameter.param_type_name == "option"
            yield from (parameter.opts[0], "nothing") if option else ("nothing",)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_gpu_that_is_not_there_is_refused_before_any_work(words, call, monkeypatch, tmp_path):
    """A mutant whose command lacks the option, or opens its input first, is caught: there is no input."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = [*words, *wanted(COMMANDS[words])]
    assert call(*given, "--device", "cuda")[0::2] == (2, [REFUSED])
    monkeypatch.setenv("THALWEG_DEVICE", "cuda")
    assert call(*given)[0::2] == (2, [REFUSED.replace("device=", "THALWEG_DEVICE=")])
    assert not list(tmp_path.iterdir())


REFUSED = (
    "thalweg: device='cuda': must be a device of this machine, on which torch finds no GPU; use cpu, or a build of "
    "torch with CUDA"
)


@pytest.fixture
def place(tmp_path, digits, plane):
    """A folder with two runs and what commands read."""
    shutil.copytree(digits.path, tmp_path / "digits")
    shutil.copytree(plane.path, tmp_path / "plane")
    images = torch.rand(6, 1, 8, 8, generator=generator(0, "images")).numpy()
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    np.save(tmp_path / "other.npy", np.random.default_rng(1).normal(1, 1, size=(40, 2)).astype(np.float32))
    frame = pd.DataFrame(np.random.default_rng(2).normal(size=(60, 2)), columns=["a", "b"])
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


WORK = {
    "sample": ["sample plane -n 5 --num-steps 3 --npy x.npy", "sample digits -n 2 --num-steps 2"],
    "score": ["score plane rows.npy", "score digits images.npy"],
    "inpaint": ["inpaint digits --image images.npy --mask right-half -n 2 -o x.npy"],
    "detect": ["detect fit table.csv -o run --seed 0", "detect score run table.csv"],
    "export": ["export plane -o plane.pt2 --format pt2 --rows 100"],
    "rerank": ["rerank fit rows.npy other.npy -o judge --steps 2 --noise 0.3", "rerank judge rows.npy --keep 3"],
}


@pytest.mark.parametrize("command", WORK)
def test_a_command_works_on_the_device(command, call, place, monkeypatch):
    """A mutant that writes a tensor of the device as it is, or leaves the option unread, is caught."""
    monkeypatch.setenv("THALWEG_DEVICE", "cpu")
    with gpu() as reads:
        for words in WORK[command]:
            reads.clear()
            code, _, lines = call(*words.split(), "--device", "cuda:0")
            assert code == 0, lines
            assert REAL or reads


def test_the_environment_is_respected(call, place, monkeypatch):
    monkeypatch.setenv("THALWEG_DEVICE", "cuda:0")
    with gpu() as reads:
        assert call("score", "plane", "rows.npy")[0] == 0
        assert REAL or reads
