"""How blocks are handed out to workers of Ray, by a Ray that answers in the order of a test."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from types import ModuleType, SimpleNamespace

import pytest

from thalweg.scale import ray_folder
from thalweg.scale.ray_driver import MAX_DEATHS, Driver, RayLost

FAILED = ["input", "wrong", None, None, None, True]


class Died(Exception):
    pass


class Call:
    def __init__(self, number):
        self.number = number


class FakeRay(ModuleType):
    """Calls are done the newest first, or in order (`newest` False); `bad`: blocks that fail; `deaths` by block."""

    def __init__(self, bad=(), deaths=None, newest=True, alive=True, answers=True):
        super().__init__("ray")
        self.bad, self.deaths, self.newest, self.asked = bad, dict(deaths or {}), newest, []
        self.alive, self.answers = alive, answers

    def wait(self, calls, num_returns, timeout):
        return (calls[-1:] if self.newest else calls[:1]) if self.answers else [], []

    def get(self, call):
        if self.deaths.get(call.number):
            self.deaths[call.number] -= 1
            raise Died("SIGKILL")
        return [*FAILED[:1], f"row of {call.number}", *FAILED[2:]] if call.number in self.bad else None

    def nodes(self):
        return [{"Alive": self.alive}]


@pytest.fixture
def driver(monkeypatch):
    """A driver of two workers of such a Ray, and the numbers of the blocks that were handed out."""

    def made(**how):
        ray, driver, asked = FakeRay(**how), object.__new__(Driver), []
        exceptions = SimpleNamespace(RayActorError=Died, WorkerCrashedError=Died)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)

        def call(block, filling):
            asked.append(block[0])
            return Call(block[0])

        actor = SimpleNamespace(do=SimpleNamespace(remote=call))
        driver.job, driver.stopped, driver.count = {"files": [["a.csv", "/a.csv"]]}, threading.Event(), 2
        driver._actor, driver._free = SimpleNamespace(remote=lambda job: actor), deque()
        return driver, asked

    return made


def blocks(num):
    return [[i, 0, 10 * i, 10, [0, 0]] for i in range(num)]


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("bad", [(1, 2), (2, 3), (0, 1, 2, 3), (4,)])
def test_the_first_bad_block_is_what_is_told(bad, newest, driver):
    """Whichever worker is faster; and no block is handed out after it that another worker had not begun."""
    made, asked = driver(bad=bad, newest=newest)
    found = [*made.run(blocks(8), None)]
    assert found[-1].failure == [*FAILED[:1], f"row of {bad[0]}", *FAILED[2:]]
    assert [each.failure for each in found[:-1]] == [None] * (len(found) - 1)
    assert {*range(bad[0])} <= {*asked}
    assert max(asked) <= bad[0] + 1 if not newest else max(asked) < 8
    assert len(found) - 1 >= bad[0]


def test_deaths_are_made_good_and_told(driver):
    made, asked = driver(deaths={2: MAX_DEATHS - 1})
    found = [*made.run(blocks(5), None)]
    assert [each.failure for each in found] == [None] * 5
    assert sum(each.deaths for each in found) == MAX_DEATHS - 1
    assert sorted(asked) == sorted([0, 1, 2, 3, 4, *[2] * (MAX_DEATHS - 1)])


def test_a_block_at_which_workers_die(driver):
    made, _ = driver(deaths={1: MAX_DEATHS}, newest=False)
    *_, last = made.run(blocks(4), None)
    assert last.failure[1].startswith(f"a.csv, rows 10 to 19 (counted from 0): {MAX_DEATHS} workers died at them; ")


def test_no_node_is_left(driver):
    made, _ = driver(alive=False, answers=False)
    with pytest.raises(RayLost, match="no node of it is left"):
        next(made.run(blocks(4), None))


RAY = """
import pathlib, time

def init(address, _temp_dir, **how):
    (pathlib.Path(_temp_dir) / "log").touch()
    time.sleep({seconds})
    raise OSError("no port")

def shutdown():
    pass
"""
DRIVE = "import thalweg.scale.ray_driver as driver; driver.STARTS, driver.LAST = 1, {last}; driver.main()"


@pytest.mark.parametrize("seconds", [0, 300])
def test_the_folder_ends_with_the_engine(seconds, tmp_path):
    """What the engine cannot remove when it is killed, the driver does, even where Ray does not let go."""
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "ray.py").write_text(RAY.format(seconds=seconds))
    about = {"job": {}, "workers": 1, "address": None, "folder": str(folder), "on_gpu": False}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": os.environ | {"PYTHONPATH": path}}
    with subprocess.Popen([sys.executable, "-c", DRIVE.format(last=1 if seconds else 60)], **how) as process:
        said, _ = process.communicate(json.dumps(about) + "\n", timeout=60)
    assert seconds or json.loads(said) == {"no_cluster": "no port"}
    assert not folder.exists()


def test_the_folder_of_a_dead_command_is_removed_and_no_other(forked, monkeypatch, tmp_path):
    """By its lock, which the command's driver shares: mutants without the lock, and with the command's alone."""
    monkeypatch.setattr(ray_folder, "home", lambda: str(tmp_path))
    (tmp_path / "ray-mine").mkdir()
    (tmp_path / "ray-elsewhere").mkdir()
    (tmp_path / "ray-elsewhere" / ".thalweg-0badb007").touch()
    assert forked(lambda: (ray_folder.make(), os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL
    living = ray_folder.make()
    with subprocess.Popen(["sleep", "60"], pass_fds=(living.lock,)) as driver:
        os.close(living.lock)
        assert len([*tmp_path.iterdir()]) == 4
        ray_folder.clean()
        there = {path.name for path in tmp_path.iterdir()}
        assert there == {"ray-mine", "ray-elsewhere", os.path.basename(living.path)}
        driver.kill()
    ray_folder.clean()
    assert {path.name for path in tmp_path.iterdir()} == {"ray-mine", "ray-elsewhere"}
