"""`thalweg score` and `thalweg detect score` of many files, as a user types them."""

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from thalweg.scale.worker import Worker


def test_a_pattern_into_a_folder(thalweg_command, detector, tables, tmp_path):
    code, out, err = thalweg_command(
        "detect", "score", detector, f"{tables}/*", "-o", "out", "--block-rows", 100, "--json"
    )
    found = json.loads(out)
    assert (code, found["rows"], found["parts"]) == (0, 1260, 13)
    assert err[0].startswith(f"1260 rows in 13 parts in out, {found['flagged']} flagged; ")
    assert len(pd.read_parquet(tmp_path / "out")) == 1260


def test_an_energy_of_a_folder(thalweg_command, plane, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "x.npy", np.random.default_rng(0).normal(size=(300, 2)))
    code, out, err = thalweg_command("score", plane.path, "in", "-o", "scores/", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 300)
    assert err[0].startswith("300 rows in 1 parts in scores/, ")
    assert set(pd.read_parquet(tmp_path / "scores")["file"]) == {"in/x.npy"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["in/*.parquet", "-o", "s.csv"], "--out='s.csv': must be a folder for in/*.parquet, which may be many files"),
        (["in", "-o", "s.csv"], "--out='s.csv': must be a folder for in, which may be many files; such as -o scores/"),
        (["in/a.csv", "-o", "s.csv", "--engine", "ray"], "must be a folder with --engine ray"),
        (["in/a.csv", "-o", "out", "--workers", "2"], "--workers=2: has no effect without --engine ray; leave it out"),
        (["in/a.csv", "--block-rows", "9"], "--block-rows=9: has no effect without a folder as --out; leave it out"),
        (["in/a.csv", "--only-changed"], "--only-changed=True: has no effect without a folder as --out; leave it out"),
        (["in/*.txt", "-o", "out"], "must match files that end in .parquet, .csv, .npy"),
        (["in/*", "-o", "out", "--engine", "spark"], "'spark' is not one of"),
        (["in/*", "-o", "in/a.csv/"], "in/a.csv: must be a folder, and "),
        (["in/*", "-o", "/dev/full"], "/dev/full: must be a folder, and /dev/full is a file; name another"),
        (["in/*", "-o", "out", "--drop", "z"], "in/*: no column 'z'; there are flow, heat, site"),
    ],
)
def test_what_does_not_go_together(words, part, thalweg_command, detector, rows, tmp_path):
    (tmp_path / "in").mkdir()
    rows(30, 1).to_csv(tmp_path / "in" / "a.csv", index=False)
    code, _, err = thalweg_command("detect", "score", detector, *words)
    assert (code, len(err)) == (2, 1), err
    assert part in err[0]
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_scores_are_not_written_into_the_detectors_folder(thalweg_command, detector, tables):
    """As those of a single file are not: the next fit would refuse the folder."""
    code, _, err = thalweg_command("detect", "score", detector, tables, "-o", detector / "scores")
    assert (code, len(err)) == (2, 1)
    assert "scores: must lie outside of the detector's folder" in err[0]
    assert not (detector / "scores").exists()


def test_a_file_that_may_not_be_read_is_called_as_it_was_given(thalweg_command, detector, rows, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    rows(30, 1).to_parquet(tmp_path / "in" / "a.parquet", index=False)
    opened = Path.open

    def refused(path, *args, **how):
        if path.name == "a.parquet":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **how)

    monkeypatch.setattr(Path, "open", refused)
    code, _, err = thalweg_command("detect", "score", detector, "in", "-o", "out")
    assert (code, err) == (2, ["thalweg: in/a.parquet: no permission to read it; change its mode or its owner"])


def test_a_column_that_some_files_have_is_dropped_there(thalweg_command, detector, rows, tmp_path):
    (tmp_path / "in").mkdir()
    for name, frame in (("a", rows(30, 1)), ("b", rows(20, 2).assign(z=1.0))):
        frame.to_parquet(tmp_path / "in" / f"{name}.parquet", index=False)
    words = ["detect", "score", detector, "in/*.parquet", "-o", "out/", "--json"]
    code, out, err = thalweg_command(*words, "--drop", "z")
    assert (code, json.loads(out)["rows"]) == (0, 50), err
    code, _, err = thalweg_command(*words, "--drop", "z", "--drop", "y")
    assert (code, len(err)) == (2, 1)
    assert "no column 'y' in any of the 2 files" in err[0]


def test_a_file_without_rows_is_told_of(score, rows, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for name, num in (("a", 30), ("b", 0)):
        rows(30, 1)[:num].to_parquet(tmp_path / "in" / f"{name}.parquet", index=False)
    assert score(tmp_path / "in", tmp_path / "out").rows == 30
    (line,) = [record.getMessage() for record in caplog.records if "without a row" in record.getMessage()]
    assert "b.parquet" in line
    assert "a.parquet" not in line


def test_only_the_parts_whose_rows_have_changed(thalweg_command, detector, rows, tmp_path):
    frame, words = rows(300, 1), ["detect", "score", detector, "a.csv", "-o", "out", "--block-rows", 100, "--json"]
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert json.loads(thalweg_command(*words)[1])["computed"] == 3
    frame.loc[210, "flow"] += 1
    frame.to_csv(tmp_path / "a.csv", index=False)
    code, _, err = thalweg_command(*words)
    assert code == 2
    assert "--only-changed" in err[0]
    assert json.loads(thalweg_command(*words, "--only-changed")[1])["computed"] == 1


def test_stopped_by_ctrl_c(thalweg_command, detector, tables, tmp_path, monkeypatch):
    """What is there stays; a line says how to go on, and the same command does."""
    words = ["detect", "score", detector, tables, "-o", "out", "--block-rows", 100]
    calls, work = iter(range(100)), Worker.score

    def stopped(self, block):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        work(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "score", stopped)
        code, _, err = thalweg_command(*words)
    assert code == 130
    assert err[0] == "3 of 13 parts in out; to go on, give the same command"
    assert thalweg_command(*words, "--json")[0] == 0


@pytest.mark.parametrize("group", [["score"], ["detect", "score"]], ids=" ".join)
def test_the_options_are_in_the_help(group, thalweg_command):
    code, out, _ = thalweg_command(*group, "--help")
    assert code == 0
    assert all(name in out for name in ("--engine", "--workers", "--address", "--block-rows", "--only-changed"))
