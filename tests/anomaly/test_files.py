"""Scores in files: whole or not at all, however the process ends, and a table larger than the memory it may use."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

import thalweg
from thalweg.apps.anomaly.tables import score_file as score_file_module
from thalweg.apps.anomaly.tables.score_file import score_file
from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.data import score_table
from thalweg.data.formats import base, csv


def test_the_columns_of_a_score_table(normal_rows, run, thalweg_command, tmp_path):
    """In the table's order, whatever the order of its columns; the same from CSV and Parquet and from memory."""
    new = pd.concat([normal_rows(30, seed=1), normal_rows(2).assign(flow=[9.0, -9.0])])[["site", "heat", "flow"]]
    new.to_csv(tmp_path / "new.csv", index=False)
    new.to_parquet(tmp_path / "new.parquet", index=False)
    code, out, err = thalweg_command("detect", "score", run, tmp_path / "new.csv", "-o", tmp_path / "a.csv", "--json")
    assert code == 0, err
    a = pd.read_csv(tmp_path / "a.csv")
    told = json.loads(out)
    assert (told["rows"], told["flagged"]) == (32, a.flag.sum())
    reasons = [f"{name}_{i}" for i in (1, 2, 3) for name in ("feature", "share", "value", "repair")]
    assert list(a) == ["row", "energy", "p_value", "q_value", "flag", *reasons]
    detector = thalweg.load(run).detector
    np.testing.assert_allclose(a.energy, detector.energy(new), rtol=1e-12)
    np.testing.assert_allclose(a.q_value, detector.q_values(new), rtol=1e-12)
    assert a.flag[30:].all()
    assert (a.feature_1[30:] == "flow").all()
    assert a.value_1[30:].astype(float).tolist() == [9.0, -9.0]
    assert a[~a.flag][reasons].isna().to_numpy().all()
    assert thalweg_command("detect", "score", run, tmp_path / "new.parquet", "-o", tmp_path / "b.parquet")[0] == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "b.parquet")[["row", "energy", "q_value"]], a[["row", "energy", "q_value"]]
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_blocks_of_one_row_give_the_scores_of_one_block(suffix, normal_rows, run, tmp_path, monkeypatch):
    new = normal_rows(40, seed=2)
    new.to_csv(tmp_path / "new.csv", index=False)
    new.to_parquet(tmp_path / "new.parquet", index=False)
    bundle = thalweg.load(run)
    score_file(bundle, tmp_path / f"new.{suffix}", tmp_path / "a.csv", alpha=0.3)
    monkeypatch.setattr(base, "BLOCK_ROWS", 1)
    monkeypatch.setattr(csv, "BLOCK_BYTES", 200)
    score_file(bundle, tmp_path / f"new.{suffix}", tmp_path / "b.csv", alpha=0.3)
    a, b = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv")
    pd.testing.assert_frame_equal(a, b, rtol=1e-9)
    assert a.flag.any()


MEASURE = """
import resource, sys, thalweg
from pathlib import Path
from thalweg.apps.anomaly.tables.score_file import score_file
run, small, out, *large = map(Path, sys.argv[1:])
bundle = thalweg.load(run)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
score_file(bundle, small, out)
for path in large:
    before = peak()
    print(score_file(bundle, path, out, drop=["note"]).rows, peak() - before)
"""


def test_memory_does_not_grow_with_the_table(normal_rows, run, tmp_path):
    """96 MB in one Parquet row group and in a CSV, each scored in less than half of that; read whole it takes all."""
    normal_rows(10).to_csv(tmp_path / "small.csv", index=False)
    large = normal_rows(6_000, seed=3).assign(note=np.random.default_rng(0).bytes(8000).hex())
    large["note"] = large.note + large.index.astype(str)
    large.to_parquet(tmp_path / "large.parquet", index=False)
    large.to_csv(tmp_path / "large.csv", index=False)
    words = [run, *(tmp_path / name for name in ("small.csv", "scores.csv", "large.parquet", "large.csv"))]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, words)], capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stderr
    for line in found.stdout.splitlines():
        num, grown = map(int, line.split())
        assert num == 6_000
        assert grown < 48
    assert len(found.stdout.splitlines()) == 2


@pytest.fixture
def small_disk():
    """No file may grow beyond 8 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_full_disk(suffix, normal_rows, run, thalweg_command, tmp_path, request):
    """Exit code 1, a line that names the file, what was there stays, and nothing is left beside it."""
    normal_rows(2000, seed=4).to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / f"scores.{suffix}").write_text("earlier scores")
    (tmp_path / "run").mkdir()
    request.getfixturevalue("small_disk")
    code, _, err = thalweg_command("detect", "score", run, tmp_path / "new.csv", "-o", tmp_path / f"scores.{suffix}")
    assert (code, len(err)) == (1, 1), err
    assert f"no room to write to {tmp_path}/scores.{suffix}" in err[0]
    assert "what was there is intact" in err[0]
    assert (tmp_path / f"scores.{suffix}").read_text() == "earlier scores"
    code, _, err = thalweg_command("detect", "fit", tmp_path / "new.csv", "-o", tmp_path / "run")
    assert (code, len(err)) == (1, 1), err
    assert "no room to write" in err[0]
    assert {p.name for p in tmp_path.iterdir()} == {"new.csv", "run", f"scores.{suffix}"}
    assert not list((tmp_path / "run").iterdir())


def kill_while_scoring(signum):
    """In this process, a signal once half of the scores are written."""

    class Killed:
        def __init__(self, file, suffix, schema):
            self.file = file

        def write(self, block):
            self.file.write(b"half of the sco")
            self.file.flush()
            os.kill(os.getpid(), signum)

    score_file_module.writer = score_table.writer = Killed


def kill_while_fitting():
    """In this process, SIGKILL once the first tensors are written."""
    whole = store.write_tensors

    def write_tensors(path, tensors, **more):
        whole(path, tensors, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    store.write_tensors = write_tensors


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_killed_while_the_scores_are_written(signum, code, normal_rows, run, forked, thalweg_command, tmp_path):
    """What was there stays under its name, and nothing beside it."""
    normal_rows(30, seed=5).to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / "scores.csv").write_text("earlier scores")
    words = ["detect", "score", run, tmp_path / "new.csv", "-o", tmp_path / "scores.csv"]
    ended, _, err = forked(*words, change=lambda: kill_while_scoring(signum)).wait()
    assert ended == code, err
    assert "Traceback" not in err
    assert (tmp_path / "scores.csv").read_text() == "earlier scores"
    assert {p.name for p in tmp_path.iterdir()} == {"new.csv", "scores.csv"}
    assert thalweg_command(*words)[0] == 0
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 30
    assert {p.name for p in tmp_path.iterdir()} == {"new.csv", "scores.csv"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_while_the_detector_is_written(normal_rows, forked, thalweg_command, tmp_path):
    """There is no detector, and the same command makes one. Whatever is hidden in the user's folder stays there."""
    normal_rows(30, seed=6).to_csv(tmp_path / "new.csv", index=False)
    words = ["detect", "fit", tmp_path / "new.csv", "-o", tmp_path / "run"]
    assert forked(*words, change=kill_while_fitting).wait()[0] == -9
    assert not (tmp_path / "run").exists()
    code, _, err = thalweg_command("detect", "score", tmp_path / "run", tmp_path / "new.csv", "-o", tmp_path / "s.csv")
    assert (code, len(err)) == (2, 1)
    assert str(tmp_path / "run") in err[0]
    assert thalweg_command(*words)[0] == 0
    assert {p.name for p in tmp_path.glob("[!.]*")} == {"new.csv", "run"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "calibration.safetensors", "manifest.json"])
def test_a_detector_that_was_altered_is_refused(name, normal_rows, run, thalweg_command, tmp_path):
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: -1 if path.name == name else None])
    normal_rows(3).to_csv(tmp_path / "new.csv", index=False)
    code, _, err = thalweg_command("detect", "score", tmp_path, tmp_path / "new.csv", "-o", tmp_path / "s.csv")
    assert (code, len(err)) == (2, 1), err
    assert name in err[0]


def test_a_folder_that_may_not_be_written(normal_rows, run, thalweg_command, tmp_path):
    normal_rows(3).to_csv(tmp_path / "new.csv", index=False)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:  # who may write everywhere but among the kernel's own files
        locked = Path("/proc")
    code, _, err = thalweg_command("detect", "score", run, tmp_path / "new.csv", "-o", locked / "s.csv")
    assert (code, len(err)) == (2, 1)
    assert str(locked / "s.csv") in err[0]


def test_a_block_has_what_the_public_methods_say(normal_rows, run):
    """The same bits as from `energy`, `p_values` and `explain`, whatever the order of the columns."""
    detector = thalweg.load(run).detector
    new = pd.concat([normal_rows(30, seed=1), normal_rows(2).assign(flow=[9.0, -9.0])], ignore_index=True)
    for frame in (new, pl.from_pandas(new[["site", "heat", "flow"]])):
        block = detector.score_block(frame)
        np.testing.assert_array_equal(block.energy, detector.energy(new))
        np.testing.assert_array_equal(block.p_value, detector.p_values(new))
        np.testing.assert_array_equal(block.flag, detector.predict(new) == -1)
        np.testing.assert_array_equal((1 + block.rank) / 61, block.p_value)
        flagged = np.flatnonzero(block.flag)
        assert {30, 31} <= {*flagged}
        expected = [r._replace(row=int(flagged[r.row])) for r in detector.explain(new.iloc[flagged], top=3)]
        assert [r[:2] for r in block.reasons] == [r[:2] for r in expected]
        assert [r.share for r in block.reasons] == [r.share for r in expected]
        assert block.reasons[-3].value == -9.0
    assert not detector.score_block(new[:3], alpha=1e-3).reasons
    with pytest.raises(UserError, match=r"new\.csv: column 'flow' is missing \(NaN\) in row 106"):
        detector.score_block(new[:9].assign(flow=[0.0] * 6 + [np.nan] * 3), where="new.csv", first=100)
    with pytest.raises(UserError, match="alpha=2"):
        detector.score_block(new, alpha=2)
