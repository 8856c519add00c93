"""Scoring by workers of Ray: the bytes of a single process, whoever is killed (R30). Long forms: `make extras`."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from thalweg.core.errors import UserError
from thalweg.scale import ray_engine
from thalweg.scale.score_files import Engine, score_files
from thalweg.scale.scorers import Options

JOB = Path(__file__).parent / "ray_job.py"


def started(**given):
    return subprocess.Popen([sys.executable, JOB, json.dumps(given)], stdout=subprocess.PIPE, text=True)


def ended(process, timeout=600):
    with process:
        out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def test_without_ray(monkeypatch, score, tables, tmp_path):
    """One line, before any work, with what to install."""
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--engine='ray': needs Ray; pip install 'thalweg\[cluster\]'"):
        score(tables, tmp_path / "out", engine=Engine("ray"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("ray") is None, reason="without the extra `cluster`")
def test_a_killed_worker(detector, score, tables, bytes_of, tmp_path):
    """R30: the bytes of a single process; one block is done again; nothing listens but on the loopback."""
    score(tables, tmp_path / "one")
    given = {"kind": "detector", "run": str(detector), "data": str(tables), "out": str(tmp_path / "ray")}
    found = ended(started(**given, workers=2, block_rows=100, kills=1))
    assert (found["kills"], found["computed"]) == (1, 13)
    assert found["retried"] <= 1
    assert found["exposed"] == []
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "one")


@pytest.fixture(scope="module")
def million(tmp_path_factory, rows):
    """A million rows of a table in ten files."""
    folder = tmp_path_factory.mktemp("million")
    for i in range(10):
        frame = pa.Table.from_pandas(rows(100_000, 100 + i), preserve_index=False)
        parquet.write_table(frame, folder / f"{i}.parquet", row_group_size=30_000)
    return folder


@pytest.mark.slow
@pytest.mark.extras
def test_twenty_killed_workers_over_a_million_rows(million, detector, score, bytes_of, tmp_path):
    """R30: 20 SIGKILLs of workers at random; at most one block a kill is done again."""
    score(million, tmp_path / "one", block_rows=8192)
    given = {"kind": "detector", "run": str(detector), "data": str(million), "out": str(tmp_path / "ray")}
    found = ended(started(**given, workers=2, block_rows=8192, kills=20, chance=0.4, within=0.5), 3000)
    assert (found["kills"], found["rows"]) == (20, 1_000_000)
    assert found["retried"] <= 20
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.extras
def test_five_killed_drivers_over_a_million_rows(million, detector, score, bytes_of, tmp_path):
    """R30: 5 SIGKILLs of the driver; no part that was there is made again, so at most the two in work are."""
    score(million, tmp_path / "one", block_rows=8192)
    out, random = tmp_path / "ray", np.random.default_rng(0)
    given = {"kind": "detector", "run": str(detector), "data": str(million), "out": str(out)}
    given |= {"workers": 2, "block_rows": 8192}
    total = len(list((tmp_path / "one").glob("part-*")))
    for kill in range(5):
        process, wanted = started(**given), (kill + 1) * total // 6
        while len(list(out.glob("part-*"))) < wanted and process.poll() is None:
            time.sleep(0.05)
        time.sleep(random.random() / 2)
        with process:
            process.send_signal(signal.SIGKILL)
        time.sleep(2)  # the workers of a dead driver end by themselves; one may finish its block
        there = {path.name: path.stat().st_ino for path in out.glob("part-*")}
        assert len(there) >= wanted
        if kill:
            assert all(there[name] == inode for name, inode in before.items())
        before = there
    found = ended(started(**given), 3000)
    assert found["computed"] == total - len(before)
    assert found["rows"] == 1_000_000
    assert bytes_of(out) == bytes_of(tmp_path / "one")
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if _is_of(pid, str(out))]


@pytest.fixture(scope="module")
def many(tmp_path_factory, rows, detector):
    """300,000 rows in 150 files, and the scores of one process."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(150):
        frame = pa.Table.from_pandas(rows(2000, 500 + i), preserve_index=False)
        parquet.write_table(frame, folder / f"{i:03d}.parquet")
    local = tmp_path_factory.mktemp("local") / "out"
    score_files("detector", Options(str(detector)), str(folder), str(local))
    return folder, local


VICTIMS = {  # what its command line holds, and whether the work goes on without it
    "raylet": ("/raylet/raylet", False),
    "agent": ("ray::DashboardAgent", False),
    "gcs_server": ("/gcs/gcs_server", None),  # as long as no worker dies
    "worker": ("ray::Actor", True),
    "driver": ("thalweg.scale.ray_driver", False),
    "command": (None, False),
}


@pytest.mark.extras
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_of_ray(victim, many, detector, bytes_of, tmp_path):
    """R30: one line that says what, where and how to go on, in bounded time; the same command makes the rest.

    Nothing of Ray is left, of processes and files.
    """
    (folder, local), out, (name, goes_on) = many, tmp_path / "out", VICTIMS[victim]
    words = [sys.executable, "-m", "thalweg", "detect", "score", detector, folder, "-o", out, "--engine", "ray"]
    command = [*map(str, words), "--workers", "2"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **how) as process:
        while len(list(out.glob("part-*"))) < 15 and process.poll() is None:
            time.sleep(0.02)
        below = [*_opened(_descendants(process.pid))]
        raylet = _below(process.pid, "/raylet/raylet")
        (own,) = set(re.findall(r"/tmp/ray-\w+", Path(f"/proc/{raylet}/cmdline").read_text()))
        os.kill(process.pid if name is None else _below(process.pid, name), signal.SIGKILL)
        began = time.monotonic()
        said, lines = process.communicate(timeout=300)
        took = time.monotonic() - began
    lines = [line for line in lines.splitlines() if not line.endswith(" of 150 parts")]  # progress
    assert said == ""
    if name is None:
        assert process.returncode == -signal.SIGKILL
    elif goes_on or (goes_on is None and not process.returncode):
        assert (process.returncode, len(lines)) == (0, 1)
    else:
        assert (process.returncode, len(lines)) == (1, 1), lines
        assert lines[0].startswith("thalweg: Ray: ")
        assert f"parts of this call in {out}; nothing that is there is lost, and the same command goes on" in lines[0]
    assert took < 90
    assert not _alive(below, 30)
    assert not Path(own).exists()
    again = subprocess.run([*command, "--json"], **how, timeout=300)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["computed"] <= 135
    assert json.loads(again.stdout)["rows"] == 300_000
    assert bytes_of(out) == bytes_of(local)


def _descendants(root):
    """The processes below `root`, each after its own."""
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield from _descendants(child)
            yield child


def _below(root, name):
    """The first process below `root` with this in its command line."""
    names = ((pid, Path(f"/proc/{pid}/cmdline").read_text().split("\0--")[0]) for pid in _descendants(root))
    return next(pid for pid, words in names if name in words)


def _opened(pids):
    """A file descriptor of each process that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            yield os.pidfd_open(pid)


def _alive(below, seconds):
    """Those of these processes, by file descriptors of them, that live after so many seconds."""
    end = time.monotonic() + seconds
    while below and time.monotonic() < end:
        for each in select.select(below, [], [], max(0.0, end - time.monotonic()))[0]:
            below.remove(each)
            os.close(each)
    return below


def _is_of(path: Path, out: str) -> bool:
    try:
        return out in (path / "cmdline").read_text() and int(path.name) != os.getpid()
    except OSError:
        return False
