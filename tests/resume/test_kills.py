"""Killed anywhere, as often as it may be, a run ends with the bits of one that was not (trust R1-R4)."""

import itertools
import os
import random
import shutil
import signal
import time

import pytest
import torch

from thalweg.core import state_tree, store
from thalweg.training.state import FOLDER

from .runs import CASES, STEPS, assert_same, checkpoints, counted, fork, in_child, leftovers, newest, size, trainer

KEEP = 2
SYNCS = ("fsync", "replace", "rename", "mkdir")
CALLS = ("open", "write", "fsync", "replace", "mkdir", "rename", "close", "unlink", "rmdir", "scandir")
OTHERS = sorted(set(CASES) - {"pcd-vector"})
KILLED = ("dsm", "dual-image", "jem-chains", "pcd-vector", "pcd-mala", "rollback")

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_step(case, folder, rng):
    """SIGKILL after a step; whether the process was killed."""
    at = rng.randrange(1, STEPS)
    return in_child(lambda: trainer(case, folder, [lambda state, plan: state.step == at and die()]).fit() and None)


def killed_at_sync(case, folder, rng):
    """SIGKILL before a call that puts something on the disk: most of these lie inside a save."""
    at = rng.randrange(2, 40)

    def work():
        with counted(SYNCS, lambda i, name, args: i == at and die()):
            trainer(case, folder).fit()

    return in_child(work)


def killed_at_a_time(case, folder, rng, longest):
    """SIGKILL by another process, at any moment."""
    pid = fork(lambda: trainer(case, folder).fit() and None)
    time.sleep(rng.uniform(0, longest))
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def kill_until(kills, case, expected, parent, rng, choose):
    """Kill runs of a case, each by the way that `choose()` gives, until `kills` kills landed, each run to its end;
    (kills inside a save, runs).
    """
    inside = number = runs = 0
    while number < kills:
        folder, runs = parent / f"run-{runs}", runs + 1
        code, whole = -signal.SIGKILL, 0
        while code == -signal.SIGKILL and number < kills:
            code = choose()(case, folder, rng)
            assert code in (0, -signal.SIGKILL)
            number += code != 0
            inside += any(path.parent.name == FOLDER for path in leftovers(folder)) and code != 0
            whole = max([whole, *(size(path) for path in (folder / FOLDER).glob("step-*"))])
            # their sizes differ a little: right after a rollback there is one snapshot less
            assert not whole or size(folder / FOLDER) <= (KEEP + 1) * whole * 1.2, "R4: the disk's use is bounded"
        run = trainer(case, folder)
        run.fit()
        assert_same(run, expected)
        assert leftovers(folder) == [], "R4: no orphans after the next start"
        assert KEEP <= len(checkpoints(folder)) <= KEEP + 1  # one more if the last kill came right after the last save
        shutil.rmtree(folder)
    return inside, runs


@pytest.mark.parametrize("case", KILLED)
def test_r1_r2_r4_killed_anywhere_it_resumes_exactly_and_leaves_no_orphans(wholes, tmp_path, case):
    """Three kills each of runs with every kind of state; all cases have twenty below."""
    expected = wholes(case)
    ways = itertools.cycle([killed_at_sync, killed_at_step, killed_at_sync])
    inside, _ = kill_until(3, case, expected, tmp_path, random.Random(case), lambda: next(ways))
    assert inside >= 1


def long(kills, case, expected, folder):
    start = time.perf_counter()
    trainer(case, folder / "timed").fit()
    longest = 1.2 * (time.perf_counter() - start)

    def at_a_time(*args):
        return killed_at_a_time(*args, longest)

    ways, rng = [killed_at_sync, killed_at_step, at_a_time], random.Random(f"long {case}")
    inside, runs = kill_until(kills, case, expected, folder, rng, lambda: rng.choice(ways))
    seconds = time.perf_counter() - start
    print(f"{case}: {kills} kills, {inside} inside a save, {runs} runs, {seconds:.0f} s")  # noqa: T201
    return inside


@pytest.mark.slow
def test_r1_two_hundred_kills_of_persistent_chains(wholes, tmp_path):
    assert long(200, "pcd-vector", wholes("pcd-vector"), tmp_path) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_r2_twenty_kills_of_every_other_objective(wholes, tmp_path, case):
    assert long(20, case, wholes(case), tmp_path) >= 1


def tensors_of(path):
    return store.read_tensors(path / "state.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


LONG = ((1, False), (1, True), (2, False))
SAVES = [(2, True), *(pytest.param(*both, marks=pytest.mark.slow) for both in LONG)]


@pytest.mark.parametrize(("keep", "again"), SAVES)
def test_r3_killed_at_every_call_of_one_save_the_loader_finds_the_old_or_the_new(tmp_path, keep, again):
    """A killed write has written half. `again`: this step's checkpoint is there already, and is replaced."""
    run = trainer("pcd-vector", tmp_path / "base", keep=keep)
    run.fit()
    base = newest(tmp_path / "base")
    old = tensors_of(base)
    run.state.step += 0 if again else 1
    with torch.no_grad():
        next(run.state.energy.parameters()).add_(1.0)
    expected, found, calls, done = state_tree.flatten(run.state._tree())[0], set(), 0, False
    before = size(base)
    resumed = trainer("pcd-vector", tmp_path / "one", keep=keep)
    shutil.rmtree(tmp_path / "one")
    while not done:
        calls += 1
        folder = tmp_path / "one"
        shutil.copytree(tmp_path / "base", folder)

        def at(i, name, args, last=calls):
            if i == last:
                if name == "write":
                    os.writev(args[0], [args[1][: len(args[1]) // 2]])
                os._exit(9)

        def work(folder=folder, at=at):
            with counted(CALLS, at):
                run.state.save(folder, keep)

        done = in_child(work) == 0
        assert size(folder / FOLDER) <= (keep + 1) * before * 1.01
        resumed._restore()
        got = tensors_of(newest(folder))
        found.add("old" if same(got, old) else "new" if same(got, expected) else "other")
        assert resumed.state.step in (STEPS, run.state.step)
        assert same(state_tree.flatten(resumed.state._tree())[0], got)
        assert leftovers(folder) == []
        if done:
            assert same(got, expected)
            assert len(checkpoints(folder)) == keep
        shutil.rmtree(folder)
    assert found == {"old", "new"}
    assert calls > 40


def test_r4_what_a_kill_kept_too_much_of_goes_before_the_next_save(tmp_path):
    """Killed between the new checkpoint's rename and the removal of the old, a run must not hold two too many."""
    run = trainer("dsm", tmp_path, keep=1)
    run.fit()
    (only,) = checkpoints(tmp_path)
    for name in ("step-00000001", "step-00000002"):
        shutil.copytree(tmp_path / FOLDER / only, tmp_path / FOLDER / name)
    seen = []
    again = trainer("dsm", tmp_path, keep=1)
    again._restore()
    again.state.step += 1
    with counted(("mkdir",), lambda i, name, args: seen.append(checkpoints(tmp_path))):
        again.state.save(tmp_path, 1)
    assert seen[-1] == [only]
    assert checkpoints(tmp_path) == [f"step-{STEPS + 1:08d}"]
