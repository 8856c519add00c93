"""`--skip-bad` of scores in a folder and of a detector's scores: each row once, those that have no scores named."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import thalweg
from thalweg.apps.anomaly.calibration import q_values
from thalweg.apps.anomaly.tables.score_file import score_file
from thalweg.core.errors import UserError
from thalweg.scale.worker import Failure

JOB = Path(__file__).parent / "ray_job.py"
SKIP = (None, (), None, (), "auto", True)  # options of `score_files` from alpha on, with skip_bad
NO_SCORES = ["energy", "p_value", "q_value", "flag", "feature_1"]


@pytest.fixture
def bad(rows):
    """500 rows, of which 40 lacks a value, 333 has a text among numbers, 450 is infinite; 7 and 8 are of a new site."""
    frame = rows(500, 1).astype(object)
    frame.loc[40, "flow"], frame.loc[333, "heat"], frame.loc[450, "flow"] = None, "oops", float("inf")
    frame.loc[[7, 8], "site"] = ["new", "newer"]
    return frame


def test_rows_stay_without_scores(score, bad, rows, tmp_path, caplog):
    """The others have the q-values of a table without the bad ones; a new category is told by column and count."""
    bad.to_csv(tmp_path / "a.csv", index=False)
    found = score(tmp_path / "a.csv", tmp_path / "out", options=SKIP)
    assert (found.rows, found.num_left_out, found.parts) == (500, 3, 5)
    assert [each.name.partition(", ")[2] for each in found.left_out] == [
        f"row {i} (counted from 0)" for i in (40, 333, 450)
    ]
    assert found.left_out[1].reason == "column 'heat' holds 'oops', where numbers were in the fit"
    assert found.new_categories == {"site": 2}
    assert "'site' in 2 rows ('new', 'newer'), taken for " in caplog.text
    got = pd.read_parquet(tmp_path / "out")
    assert got["row"].tolist() == [*range(1, 501)]
    empty = got["energy"].isna()
    assert got["row"][empty].tolist() == [41, 334, 451]
    assert got.loc[empty, NO_SCORES].isna().all().all()
    np.testing.assert_array_equal(got["q_value"][~empty], q_values(got["p_value"][~empty].to_numpy()))
    assert found.mean_energy == pytest.approx(got["energy"].mean())
    assert found.flagged == got["flag"].sum()
    done = json.loads((tmp_path / "out" / "_done.json").read_text())
    assert (done["num_left_out"], len(done["left_out"]), done["new_categories"]) == (3, 3, {"site": 2})


def test_the_same_call_goes_on_with_it(score, bad, bytes_of, tmp_path):
    """Parts before the bad row stay; the folder is to the byte that of a call that had it from the start."""
    bad.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=r"'flow' is missing .* in row 40 ") as caught:
        score(tmp_path / "a.csv", tmp_path / "one")
    assert caught.value.skippable
    score(tmp_path / "a.csv", tmp_path / "out", options=SKIP)
    parts = bytes_of(tmp_path / "out")
    (tmp_path / "out" / "part-000003.parquet").unlink()
    assert score(tmp_path / "a.csv", tmp_path / "out", options=SKIP).computed == 1
    assert bytes_of(tmp_path / "out") == parts
    with pytest.raises(UserError, match=r"'flow' is missing .* in row 40 "):
        score(tmp_path / "a.csv", tmp_path / "out")
    assert score(tmp_path / "a.csv", tmp_path / "one", options=SKIP).computed == 5
    assert bytes_of(tmp_path / "one") == parts


def test_corrected_rows_have_scores(score, bad, rows, bytes_of, tmp_path):
    path = tmp_path / "a.csv"
    bad.to_csv(path, index=False)
    score(path, tmp_path / "out", options=SKIP)
    rows(500, 1).to_csv(path, index=False)
    assert score(path, tmp_path / "out", only_changed=True).num_left_out == 0
    score(path, tmp_path / "new")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "new")


def test_one_table_into_one_file(call, detector, bad, score, tmp_path):
    """The rows and scores of a folder, the lines of an editor."""
    bad.to_csv(tmp_path / "a.csv", index=False)
    code, _, err = call("detect", "score", detector, "a.csv")
    assert (code, err[-1].endswith("; --skip-bad leaves out what cannot be used")) == (2, True)
    code, found, err = call("detect", "score", detector, "a.csv", "--skip-bad", "--json")
    assert (code, found["rows"], found["num_left_out"]) == (0, 500, 3)
    assert [each["name"] for each in found["left_out"]] == ["line 42", "line 335", "line 452"]
    assert "left out line 42: column 'flow' is missing (NaN)" in err
    assert "500 rows in scores.csv, 3 of them without scores, " in err[-1]
    score(tmp_path / "a.csv", tmp_path / "out", options=SKIP)
    many = pd.read_parquet(tmp_path / "out").drop(columns="file")
    one = pd.read_csv(tmp_path / "scores.csv")
    assert list(one.columns) == list(many.columns)
    for name in ("row", "energy", "p_value", "q_value"):
        np.testing.assert_allclose(one[name], many[name], rtol=1e-9)


def test_the_command_into_a_folder(call, detector, bad, tmp_path):
    bad.to_csv(tmp_path / "a.csv", index=False)
    code, _, err = call("detect", "score", detector, "a.csv", "-o", "out/")
    assert (code, err[-1].endswith("; --skip-bad leaves out what cannot be used")) == (2, True)
    code, found, err = call("detect", "score", detector, "a.csv", "-o", "out/", "--skip-bad", "--json")
    assert (code, found["num_left_out"]) == (0, 3), err
    assert "left out a.csv, row 40 (counted from 0): column 'flow' is missing (NaN)" in err


@pytest.mark.skipif(find_spec("ray") is None, reason="without the extra `cluster`")
def test_by_workers_of_ray(detector, score, bad, bytes_of, tmp_path):
    """The bytes of a single process, in a process of its own, as in `test_ray`."""
    bad.to_csv(tmp_path / "a.csv", index=False)
    score(tmp_path / "a.csv", tmp_path / "one", options=SKIP)
    given = {"kind": "detector", "run": str(detector), "data": str(tmp_path / "a.csv"), "out": str(tmp_path / "ray")}
    words = json.dumps({**given, "workers": 1, "block_rows": 100, "skip_bad": True})
    job = subprocess.run([sys.executable, JOB, words], check=True, capture_output=True, text=True, timeout=300)
    assert json.loads(job.stdout.splitlines()[-1])["num_left_out"] == 3
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "one")


def test_errors_between_processes_keep_what_mends_them(score, bad, tmp_path):
    bad.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError) as caught:
        score(tmp_path / "a.csv", tmp_path / "out")
    assert Failure.of(caught.value).error().skippable


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_an_energy(score, plane, suffix, tmp_path):
    """The first row, a row of the last block, and a block without any."""
    x = np.random.default_rng(0).normal(size=(700, 2))
    x[0, 0], x[600, 1], x[256:512] = np.nan, np.inf, np.nan
    path, frame = tmp_path / f"x{suffix}", pd.DataFrame(x, columns=["u", "v"])
    np.save(path, x) if suffix == ".npy" else frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(
        path
    )
    found = score(path, tmp_path / "out", kind="energy", run=plane.path, block_rows=256, options=SKIP)
    assert (found.rows, found.num_left_out, len(found.left_out)) == (700, 258, 100)
    got, good = pd.read_parquet(tmp_path / "out"), np.isfinite(x).all(1)
    assert got["name"].tolist() == [str(i) for i in range(700)]
    assert (got["energy"].notna() == good).all()
    assert (got["flag"].notna() == good).all()
    np.testing.assert_allclose(got["energy"][good], plane.energy(x[good]).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_no_row_at_all(score, detector, rows, suffix, tmp_path):
    path, frame = tmp_path / f"a{suffix}", rows(30, 1).assign(flow=np.nan)
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    with pytest.raises(UserError, match="must hold a row that can be scored; the first is not: column 'flow' is miss"):
        score(path, tmp_path / "out", options=SKIP)
    with pytest.raises(UserError, match="must hold a row that can be scored"):
        score_file(thalweg.load(detector), path, tmp_path / "scores.csv", skip_bad=True)
    assert not (tmp_path / "scores.csv").exists()
    assert not (tmp_path / "out" / "_done.json").exists()


def test_many_new_categories_are_counted(score, detector, rows, tmp_path, caplog):
    """Of a column 20 categories of a part are kept with their counts, and the rows of the others together."""
    rows(300, 1).assign(site=[f"s{i % 150}" for i in range(300)]).to_parquet(tmp_path / "a.parquet")
    assert score(tmp_path / "a.parquet", tmp_path / "out").new_categories == {"site": 300}
    assert "'site' in 300 rows ('s0', 's1', 's10' and others), taken for " in caplog.text
