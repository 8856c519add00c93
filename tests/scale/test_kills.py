"""R30 in short, without Ray: the process that scores is killed between parts, at a rename, while it writes."""

import os
import resource
import signal

import pytest

from thalweg.core import temporary
from thalweg.core.errors import DiskFull
from thalweg.scale import parts, score_files
from thalweg.scale.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at(number, work):
    """`work`, but the process dies instead at its call of this number."""
    calls = iter(range(10**6))
    return lambda *args, **more: die() if next(calls) == number else work(*args, **more)


def after(number, work):
    calls = iter(range(10**6))

    def call(*args, **more):
        result = work(*args, **more)
        if next(calls) == number:
            die()
        return result

    return call


DEATHS = {  # where, and how
    "before a block": (Worker, "score", at, 4),
    "after a block": (Worker, "score", after, 6),
    "at the rename of a part": (temporary.os, "replace", at, 5),
    "after the rename of a part": (temporary.os, "replace", after, 8),
    "at the rename of the plan": (temporary.os, "replace", at, 0),
    "before the q-values": (score_files, "q_by_rank", at, 0),
    "between the q-values of two parts": (parts, "fill", at, 5),
    "at the rename of a part with its q-values": (temporary.os, "replace", at, 20),
    "before all is said to be done": (score_files, "_summary", at, 0),
}


@pytest.fixture(scope="module")
def whole(detector, tables, tmp_path_factory, bytes_of):
    """The bytes of an output that nothing disturbed."""
    from thalweg.scale.scorers import Options

    out = tmp_path_factory.mktemp("whole") / "out"
    score_files.score_files("detector", Options(str(detector)), str(tables), str(out), block_rows=100)
    return bytes_of(out)


@pytest.mark.parametrize("place", DEATHS)
def test_a_killed_scoring_is_gone_on_with(place, whole, score, tables, bytes_of, forked, tmp_path, monkeypatch):
    """R30: each row once, the bytes of an undisturbed run, and no part that was there is made again."""
    where, name, how, number = DEATHS[place]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, how(number, getattr(where, name)))
        assert forked(lambda: score(tables, tmp_path / "out")) == -signal.SIGKILL
    there = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("part-*")}
    made = []
    monkeypatch.setattr(Worker, "score", spied(Worker.score, made))
    found = score(tables, tmp_path / "out")
    assert found.computed == len(made) == 13 - len(there)
    assert not {block.part for block in made} & set(there)
    temporary.clean(tmp_path / "out")
    assert bytes_of(tmp_path / "out") == whole


def spied(work, made):
    def call(self, block):
        made.append(block)
        return work(self, block)

    return call


def test_deaths_in_a_row(whole, score, tables, bytes_of, forked, tmp_path, monkeypatch):
    """R30: it dies at every third part until it comes to its end."""
    for _ in range(4):
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "score", after(2, Worker.score))
            assert forked(lambda: score(tables, tmp_path / "out")) == -signal.SIGKILL
    assert score(tables, tmp_path / "out").computed == 1
    assert bytes_of(tmp_path / "out") == whole


def test_a_full_disk(whole, score, tables, bytes_of, forked, tmp_path, monkeypatch):
    """One typed error; what was there stays, and the same call goes on when there is room."""

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "score", at(0, Worker.score))
        assert forked(lambda: score(tables, tmp_path / "out")) == -signal.SIGKILL  # the plan is there

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(DiskFull, match=r"no room to write .*part-000000\.parquet"):
            score(tables, tmp_path / "out")

    assert forked(work) == 0
    assert score(tables, tmp_path / "out").rows == 1260
    assert bytes_of(tmp_path / "out") == whole
