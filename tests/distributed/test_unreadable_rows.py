"""A picture that one of several processes cannot read: all save and end with its line, and go on without it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from thalweg.data import stored_rows
from thalweg.data.catalog import load
from thalweg.data.loader import Loader
from thalweg.data.options import DataOptions
from thalweg.training import plan
from thalweg.training.step import TRIAL_STEPS

from .processes import Run, command

TRAIN = ["--recipe", "pcd-conv", "--steps", "8", "--no-report", "energy.channels=[8,8]", "objective.num_steps=[2,2]"]
TRAIN += ["train.batch_size=16", "train.precision=fp32", "monitor.policy=none", "objective.buffer_size=32"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """200 pictures that stay in their files, and the time of a plan by two steps."""
    monkeypatch.setattr(plan, "WARM", 0)
    monkeypatch.setattr(plan, "TIMED", 1)
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", 1000)
    monkeypatch.setattr(stored_rows, "SOME_NUMBERS", 20 * 16 * 16 * 3)
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(200):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "photos" / f"{i:03}.png")
    return tmp_path / "photos"


def seen_late(path):
    """A picture that the second of two processes reads at step 3 and nobody reads before."""
    data = load(str(path), DataOptions())
    of = [Loader(data.train, batch_size=16, seed=0, rank=rank, world_size=2) for rank in range(2)]
    early = torch.cat([each.indices(step) for each in of for step in (0, 1, 2, TRIAL_STEPS // 2)])
    spaced = torch.arange(20) * len(data.train) // 20
    row = next(i for i in of[1].indices(3).tolist() if i not in early and i not in spaced)
    return data.train.base.found.files[int(data.train.rows[torch.tensor([row])])]


def test_all_processes_save_and_go_on_without_it(photos, tmp_path):
    """R9 for data: exit code 2 of both, one line by the first, all steps before saved; a mutant that saves in the
    process alone that failed hangs until the other gives it up."""
    bad = seen_late(photos)
    bad.write_bytes(bad.read_bytes()[:400])  # behind its header
    words = [str(photos), *TRAIN, "-o", str(tmp_path / "run")]
    run = Run(command(words), tmp_path / "log")
    assert run.wait() == [2, 2], run.said(0) + run.said(1)
    lines = [line for line in run.said(0).splitlines() if line.startswith("thalweg: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"thalweg: {bad}: damaged")
    assert f"(all up to step 3 is saved in {tmp_path / 'run'})" in lines[0]
    assert lines[0].endswith("; --resume --skip-bad goes on, with another image in its place")
    assert "thalweg: " not in run.said(1)
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    again = Run(command([*words, "--resume", "--skip-bad"]), tmp_path / "again")
    assert again.wait() == [0, 0], again.said(0) + again.said(1)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["data"]["skip_bad"]
    assert "which is damaged" in again.said(0) + again.said(1)
