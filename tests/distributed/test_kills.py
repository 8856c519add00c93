"""A rank that is killed, hangs or is told to stop takes the others with it, and the run resumes exactly (R2, R9)."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import thalweg
from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.training import distributed, state
from thalweg.training.state import FOLDER

from .processes import (
    LONGEST,
    LOOPBACK,
    STEPS,
    TRAIN,
    Run,
    at_step,
    at_sync,
    command,
    die,
    differences,
    environment,
    free_port,
    outcome,
    train,
)

# the second where the kill met a process that had just begun
WHY = ("another process has died", "not all processes came in time")


def killed_at_step(folder, rng):
    victim, step = rng.randrange(2), rng.randrange(1, STEPS)
    return victim, train(folder, "--resume", change=lambda rank: rank == victim and at_step(step, die))


def killed_in_a_save(folder, rng):
    number = rng.randrange(4, 40)
    return 0, train(folder, "--resume", change=lambda rank: rank == 0 and at_sync(number, die))


def killed_in_training(folder, rng):
    victim, run = rng.randrange(2), train(folder, "--resume")
    while "steps planned" not in run.said(0) and not run.codes:
        run.poll()
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    run.kill(victim)
    return victim, run


def killed_at_any_time(folder, rng):
    """Before the ranks have joined, too: then the other waits for longer."""
    victim, run = rng.randrange(2), train(folder, "--resume")
    time.sleep(rng.uniform(0.1, 2.5))
    run.kill(victim)
    return victim, run


def kill_until(kills, folder, rng, last):
    """Kill a rank again and again; seconds that the slowest survivor took. A run that got to its end begins anew."""
    slowest, ways = 0.0, [killed_at_step, killed_in_a_save, last]
    number = 0
    while number < kills:
        victim, run = ways[number % 3](folder, rng)
        codes = run.wait()
        if codes[victim] == 0:  # it came to its end before
            yield None
            continue
        number += 1
        assert codes[victim] == -signal.SIGKILL
        survivor = 1 - victim
        seconds = run.ended[survivor] - run.ended[victim]
        slowest = max(slowest, seconds)
        assert codes[survivor] not in (0, 99), run.said(survivor)
        assert seconds <= LONGEST
        *_, last = run.said(survivor).splitlines()
        assert any(last.startswith(f"thalweg: rank {survivor} of 2: {why}") for why in WHY), run.said(survivor)
        assert last.endswith("start all processes again, with --resume")
        assert "Traceback" not in run.said(survivor)
    yield slowest


def survive(kills, whole, parent, last):
    """Kills of one rank, each run resumed to its end and found to be the one that nobody disturbed."""
    slowest, runs = None, 0
    spree = iter(kill_until(kills, parent / "run", random.Random(kills), last))
    while slowest is None:
        slowest, runs = next(spree), runs + 1
        folder = parent / "run"
        if slowest is not None:
            end = train(folder, "--resume")
            assert end.wait() == [0, 0], end.said(0) + end.said(1)
        assert differences(outcome(folder), whole) == []
        folder.rename(parent / f"run-{runs}")
    print(f"{kills} kills of a rank, {runs} runs, slowest survivor {slowest:.2f} s")  # noqa: T201


def test_r2_a_killed_rank_ends_the_other_and_the_run_resumes_exactly(whole, tmp_path):
    survive(3, whole, tmp_path, killed_in_training)


@pytest.mark.slow
def test_r2_twenty_kills_of_a_rank(whole, tmp_path):
    survive(20, whole, tmp_path, killed_at_any_time)


def test_the_run_has_what_must_be_remembered(whole):
    tensors, _, rows = whole
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    mine, theirs = tensors["objective/x"], tensors["others/0/objective/x"]
    assert mine.shape == theirs.shape == (64, 2)
    assert not torch.isclose(mine, theirs).all(1).any()
    assert not torch.equal(tensors["guard/good/objective/x"], tensors["others/0/guard/1/x"])
    assert int(tensors["others/0/objective/age"].max()) > 3


def test_a_resume_with_the_chains_of_another_rank_is_met(whole, tmp_path):
    """The mutant of these tests: each rank goes on with the first rank's chains."""
    folder = tmp_path / "run"
    assert train(folder, change=lambda rank: rank == 1 and at_step(12, die)).wait()[1] == -signal.SIGKILL

    def mutant(rank):
        state._of_rank = lambda tree, own: tree

    assert train(folder, "--resume", change=mutant).wait() == [0, 0]
    found = differences(outcome(folder), whole)
    assert "others/0/objective/x" in found
    assert "metrics.jsonl" in found


def test_r9_a_signal_to_one_rank_saves_and_stops_all(whole, tmp_path):
    """SIGINT and SIGTERM are one to the trainer: tests/resume has both."""
    signum = signal.SIGTERM
    folder = tmp_path / "run"
    told = lambda rank: rank == 1 and at_step(8, lambda: os.kill(os.getpid(), signum))  # noqa: E731
    run = train(folder, change=told)
    assert run.wait() == [128 + signum] * 2, run.said(0) + run.said(1)
    *_, said, how = run.said(0).splitlines()
    assert said.startswith(f"thalweg: stopped at step 8 of {STEPS}, saved in ")
    assert how.startswith("to go on: torchrun --nproc-per-node 2 -m thalweg train two-moons")
    assert run.said(1) == ""
    assert max(path.name for path in (folder / FOLDER).iterdir()) == "step-00000008"
    again = train(folder, "--resume")
    assert again.wait() == [0, 0], again.said(0)
    assert differences(outcome(folder), whole) == []


def test_r31_another_world_size_is_refused_on_resume(tmp_path):
    pair, one = tmp_path / "pair", tmp_path / "one"
    stop = lambda rank: rank == 0 and at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))  # noqa: E731
    assert train(pair, change=stop).wait() == [143, 143]
    assert train(one, change=stop, size=1).wait() == [143]
    assert "world_size" in store.read_json(pair / "plan.json")
    alone = train(pair, "--resume", size=1)
    assert alone.wait() == [2]
    assert alone.said(0).splitlines() == [
        f"thalweg: {pair}: the run began with world size 2, and this is 1; go on by torchrun --nproc-per-node 2, "
        "or start another run"
    ]
    both = train(one, "--resume")
    assert both.wait() == [2, 2]
    assert f"{one}: the run began with world size 1, and this is 2; go on without torchrun" in both.said(0)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    run = train(tmp_path / "run", "train.batch_size=15")
    assert run.wait() == [2, 2]
    assert run.said(0).splitlines()[-1].startswith("thalweg: batch_size=15: ")
    assert not (tmp_path / "run").exists()


def test_what_ends_the_first_rank_ends_the_other(tmp_path):
    """The first rank alone looks at the folder."""
    (tmp_path / "run").write_text("")
    run = train(tmp_path / "run")
    assert run.wait() == [2, 1]
    assert "must be a folder, and is a file" in run.said(0)
    assert [line.partition(" of 2")[0] for line in run.said(1).splitlines()] == ["thalweg: rank 1"]


def test_what_ends_a_rank_is_told_by_the_first(tmp_path):
    def spoil():
        raise MemoryError("no room")

    run = train(tmp_path / "run", change=lambda rank: rank == 1 and at_step(7, spoil))
    assert run.wait() == [1, 1]
    *_, said = run.said(0).splitlines()
    assert said.startswith("thalweg: rank 0 of 2: rank 1 ended (out of memory at step 8 with a batch of 16 (no room);")
    assert "Traceback" not in run.said(0) + run.said(1)


def test_ranks_with_other_data_are_refused(tmp_path):
    def change(rank):
        TRAIN[TRAIN.index("data.limit=99")] = f"data.limit={99 + rank}"

    def work(rank):
        change(rank)
        command([*TRAIN, "-o", str(tmp_path / "run")])(rank)

    run = Run(work, tmp_path / "log")
    assert run.wait() == [2, 2]
    assert "data, settings or versions: must be the same on all ranks; rank 1 differs from rank 0" in run.said(0)
    assert not (tmp_path / "run").exists()


def hung(folder, timeout):
    """Seconds after which a rank ends whose peer is stopped without being ended."""

    def change(rank):
        distributed.TIMEOUT = timedelta(seconds=timeout)
        if rank == 1:
            at_step(7, lambda: os.kill(os.getpid(), signal.SIGSTOP))

    run = train(folder, change=change)
    while not os.WIFSTOPPED(os.waitpid(run.pids[1], os.WUNTRACED)[1]):
        pass
    start = time.monotonic()
    while 0 not in run.codes and time.monotonic() < start + LONGEST:
        run.poll()
        time.sleep(0.01)
    seconds = time.monotonic() - start
    run.kill(1)
    assert run.wait()[0] == 1, run.said(0)
    assert f"has not answered for {timeout} s" in run.said(0)
    print(f"a stopped rank was given up after {seconds:.1f} s")  # noqa: T201
    return seconds


def test_a_rank_that_hangs_is_given_up(tmp_path):
    assert hung(tmp_path / "run", 3) < 10


@pytest.mark.slow
def test_r2_a_rank_that_hangs_is_given_up_within_a_minute(tmp_path):
    assert hung(tmp_path / "run", distributed.TIMEOUT.seconds) < LONGEST


def torchrun(words, folder, env):
    """Exit code and standard error; told to end where it takes too long, it ends its processes, too."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=folder, env=env)
    try:
        _, said = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.terminate()
        _, said = process.communicate()
    return process.returncode, said


@pytest.mark.slow
def test_torchrun_trains_and_restarts_a_run_that_lost_a_rank(whole, tmp_path):
    """The command of README; a rank dies once, at step 12, and torchrun starts both again with --resume."""
    code = """
import os, signal, sys
sys.argv[0] = "thalweg"
from thalweg.training.trainer import Trainer
report = Trainer._report
def die(self, *args):
    if self.state.step == 12 and os.environ["TORCHELASTIC_RESTART_COUNT"] == os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    report(self, *args)
Trainer._report = die
from thalweg.cli.main import main
main()
"""
    (tmp_path / "command.py").write_text(code)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "command.py"]
    source = Path(thalweg.__file__).parent.parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", **LOOPBACK, "PYTHONPATH": str(source)}
    words = [sys.executable, *launch, "train", *TRAIN, "-o", "run", "--resume"]
    code, said = torchrun(words, tmp_path, env)
    assert code == 0, said
    assert f"{STEPS} steps planned, 10 done" in said
    assert differences(outcome(tmp_path / "run"), whole) == []
    stored = store.read_json(tmp_path / "run" / "config.json")["command"]
    assert shlex.split(stored)[:6] == ["torchrun", "--nproc-per-node", "2", "-m", "thalweg", "train"]


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"RANK": "", "MASTER_ADDR": ""}, "RANK"),
        ({"MASTER_PORT": ""}, "MASTER_PORT"),
        ({"RANK": "2"}, "RANK"),
        ({"RANK": "first"}, "RANK"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE"),
    ],
)
def test_an_environment_that_makes_no_sense_is_named(monkeypatch, given, argument):
    for name, value in {**environment(0, 2, 1), **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        distributed.address()
    assert caught.value.argument == argument


def test_several_processes_that_cannot_join_fail_loudly(tmp_path):
    change = lambda rank: os.environ.update({"WORLD_SIZE": "2", "RANK": ""})  # noqa: E731
    run = train(tmp_path / "run", size=1, change=change)
    assert run.wait() == [2]
    assert run.said(0).startswith("thalweg: RANK: must be set, ")
    assert not (tmp_path / "run").exists()


def test_a_process_that_stays_alone_says_so(tmp_path):
    def alone(rank):
        os.environ["WORLD_SIZE"] = "2"
        distributed.JOIN = distributed.TIMEOUT = timedelta(seconds=2)

    run = train(tmp_path / "run", size=1, change=alone)
    assert run.wait(30) == [1]
    assert "thalweg: rank 0 of 2: not all processes came in time" in run.said(0)
    assert not (tmp_path / "run").exists()
