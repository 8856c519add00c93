"""A run on rows that stay on disk, killed without a word and resumed, ends with the bits of one that was not."""

import io
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.data import stored_rows
from thalweg.data.catalog import load
from thalweg.data.loader import Loader
from thalweg.data.options import DataOptions
from thalweg.data.stored import row_groups
from thalweg.run.fit import Request, fit
from thalweg.training import plan
from thalweg.training.metrics_log import read_metrics
from thalweg.training.step import TRIAL_STEPS

from .runs import in_child

STEPS, KILLED_AT, ROWS = 14, 9, 90
NUMBERS = np.random.default_rng(0).normal(size=(ROWS, 3))
PICTURES = np.random.default_rng(1).integers(0, 255, (ROWS, 8, 8, 3), dtype=np.uint8)
VECTOR = ["energy.type=thalweg.energy.noise_conditional.residual:ResidualEnergy", "energy.width=16"]
IMAGE = ["energy.widths=[8,8]", "energy.num_blocks=[1,1]"]

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def npy(folder):
    np.save(folder / "x.npy", NUMBERS)
    return folder / "x.npy"


def table(folder):
    columns = {name: NUMBERS[:, i] for i, name in enumerate("abc")}
    parquet.write_table(pa.table(columns), folder / "x.parquet", row_group_size=20)
    return folder / "x.parquet"


def photos(folder):
    (folder / "photos").mkdir()
    for i, each in enumerate(PICTURES):
        Image.fromarray(each).save(folder / "photos" / f"{i}.png")
    return folder / "photos"


def images(folder):
    files = [io.BytesIO() for _ in PICTURES]
    for file, each in zip(files, PICTURES, strict=True):
        Image.fromarray(each).save(file, "JPEG")
    column = pa.table({"image": [file.getvalue() for file in files]})
    parquet.write_table(column, folder / "x.parquet", row_group_size=20)
    return folder / "x.parquet"


class Killer:
    """A progress bar that ends the process at a step."""

    def start(self, total, done):
        pass

    def advance(self, step, figures):
        if step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    def stop(self):
        pass


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", 0)
    monkeypatch.setattr(row_groups, "PIECE_BYTES", 200)
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 600)
    monkeypatch.setattr(row_groups, "KEPT_PIECES", 1800)


def request_of(path, workers):
    kind = VECTOR if path.suffix == ".npy" or (path.stem == "x" and "a" in parquet.read_schema(path).names) else IMAGE
    column = ["data.column=image"] if path.suffix == ".parquet" and kind is IMAGE else []
    small = [
        "train.batch_size=16",
        "train.log_every=1",
        "train.precision=fp32",
        "monitor.policy=none",
        "sampler.num_steps=2",
    ]
    return Request(
        data=path, steps=STEPS, checkpoint_every=4, overrides=[*kind, *column, *small, f"data.workers={workers}"]
    )


@pytest.mark.parametrize("write", [npy, table, photos, images])
def test_killed_and_resumed_it_ends_with_the_same_bits(write, tmp_path) -> None:
    path = write(tmp_path)
    fit(request_of(path, 2), tmp_path / "whole", tensorboard=False)
    killed = tmp_path / "killed"
    request = request_of(path, 2)
    assert in_child(lambda: fit(request, killed, progress=Killer(), tensorboard=False) and None) == -signal.SIGKILL
    assert not (killed / store.MANIFEST).exists()
    fit(request, killed, resume=True, tensorboard=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    rows = [[_timeless(row) for row in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert rows[0] == rows[1]
    config = json.loads((killed / "config.json").read_text())
    assert 0 <= config["training"]["data_wait"] <= 1
    assert "read while it trains" in config["data"]["source"]


def _timeless(row):
    return {key: value for key, value in row.items() if key not in ("seconds", "data_wait")}


def test_a_file_that_changed_before_the_run_goes_on_is_refused(tmp_path) -> None:
    path = npy(tmp_path)
    request = request_of(path, 1)
    in_child(lambda: fit(request, tmp_path / "run", progress=Killer(), tensorboard=False) and None)
    before = sorted(file.name for file in (tmp_path / "run").rglob("*"))
    np.save(path, NUMBERS + 1e-9)
    with pytest.raises(UserError, match="must have the data that the run began with"):
        fit(request, tmp_path / "run", resume=True, tensorboard=False)
    assert sorted(file.name for file in (tmp_path / "run").rglob("*")) == before


def test_a_file_that_is_cut_while_a_run_reads_it_ends_the_run_in_one_line(tmp_path) -> None:
    path = npy(tmp_path)

    class Cutter(Killer):
        def advance(self, step, figures):
            if step == KILLED_AT:
                os.truncate(path, 500)

    with pytest.raises(UserError, match=r"has changed since the run began .*; put it back"):
        fit(request_of(path, 2), tmp_path / "run", progress=Cutter(), tensorboard=False)
    assert any((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_the_files_that_changed_are_named(kept_bytes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", kept_bytes)
    path = photos(tmp_path)
    request = request_of(path, 1)
    fit(request, tmp_path / "run", tensorboard=False)
    (tmp_path / "run" / store.MANIFEST).unlink()  # as if it had not ended
    Image.fromarray(255 - PICTURES[7]).save(path / "7.png")
    Image.fromarray(255 - PICTURES[8]).save(path / "8.png")
    (path / "5.png").rename(path / "new.png")
    with pytest.raises(UserError, match=r"files changed: 7\.png and 1 more; gone: 5\.png; new: new\.png\)"):
        fit(request, tmp_path / "run", resume=True, tensorboard=False)


def _jpegs(folder):
    """JPEGs in two classes."""
    for i, each in enumerate(PICTURES):
        (folder / "photos" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).resize((40, 40)).save(folder / "photos" / str(i % 2) / f"{i:02}.jpg", quality=95)
    return folder / "photos"


def _cut(file):
    """Damage a picture behind its header."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _seen_late(path):
    """A file whose row no part is fitted to, and neither the one trial step nor one before the fourth has."""
    data = load(str(path), DataOptions(size=16))
    loader = Loader(data.train, batch_size=16, seed=0)
    early = torch.cat([loader.indices(step) for step in (0, 1, 2, TRIAL_STEPS // 2)])
    spaced = torch.arange(20) * len(data.train) // 20
    row = next(i for i in loader.indices(3).tolist() if i not in early and i not in spaced)
    return data.train.base.found.files[int(data.train.rows[torch.tensor([row])])]


def test_a_damaged_picture_ends_the_run_in_a_line_and_it_goes_on_without(tmp_path, caplog, monkeypatch) -> None:
    path = _jpegs(tmp_path)
    monkeypatch.setattr(plan, "WARM", 0)
    monkeypatch.setattr(plan, "TIMED", 1)
    monkeypatch.setattr(stored_rows, "SOME_NUMBERS", 20 * 16 * 16 * 3)
    bad = _seen_late(path)
    _cut(bad)
    small = ["energy.channels=[8,8]", "objective.num_steps=[2,2]", "train.batch_size=16", "train.precision=fp32"]
    # a recipe that fits nothing to all rows before the first step
    request = Request(data=path, recipe="pcd-conv", size=16, steps=8, overrides=[*small, "monitor.policy=none"])
    with pytest.raises(UserError, match=rf"{bad}: damaged") as caught:
        fit(request, tmp_path / "run", tensorboard=False)
    assert f"(all up to step 3 is saved in {tmp_path / 'run'})" in str(caught.value)
    assert str(caught.value).endswith("; --resume --skip-bad goes on, with another image in its place")
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    caplog.clear()
    skipping = replace(request, skip_bad=True)
    fit(skipping, tmp_path / "run", resume=True, tensorboard=False)
    told = [record.message for record in caplog.records if "stands in for" in record.message]
    assert len(told) == 1
    assert f"stands in for {bad.relative_to(path)}, which is damaged" in told[0]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["data"]["skip_bad"]
    fit(skipping, tmp_path / "whole", tensorboard=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_what_stands_in_for_a_damaged_picture_is_of_its_class(tmp_path) -> None:
    path = _jpegs(tmp_path)
    _cut(path / "1" / "89.jpg")
    _cut(path / "1" / "01.jpg")  # the first that could stand in
    data = load(str(path), DataOptions(labels="folder", skip_bad=True))
    rows = data.train.base
    files = [file.name for file in rows.found.files]
    cut, other = files.index("89.jpg"), files.index("03.jpg")
    x = rows[torch.tensor([cut, other])]
    assert torch.equal(x[0], x[1])
