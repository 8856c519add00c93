"""A run that is told to stop goes on with the bits of one that was not, for every objective (trust R1, R2, R9)."""

import json
import os
import random
import shlex
import signal

import pytest

from thalweg.training.metrics_log import read_metrics
from thalweg.training.trainer import Interrupted, Trainer

from .runs import BUFFER, CASES, STEPS, TROUBLE, assert_same, newest, stop_at, trainer


def test_the_runs_have_what_must_be_remembered(whole):
    case, (tensors, structure, rows) = whole
    back = case == "rollback"
    lost = [step + 1 for step in TROUBLE] if back else []
    assert [row["step"] for row in rows] == [step for step in range(1, STEPS + 1) if step not in lost]
    assert len({row["loss"] for row in rows}) == len(rows)
    assert len({row["learning_rate"] for row in rows}) > STEPS // 2
    chains = case.startswith("pcd") or back
    if chains:
        assert len(tensors["objective/x"]) == BUFFER
        assert int(tensors["objective/age"].max()) > 1
    for group in ("energy/", "average/", "optimizer/", "guard/good/", "guard/candidate/"):
        assert any(name.startswith(group) for name in tensors), group
    assert any(name.startswith("optimizer/") and "exp_avg_sq" in name for name in tensors)
    guard = dict(json.loads(structure)["dict"])["guard"]
    assert dict(zip(guard["fields"], guard["tuple"], strict=True))["rollbacks"] == back


SIGNALS = [(case, signal.SIGTERM) for case in CASES] + [("pcd-vector", signal.SIGINT)]


@pytest.mark.parametrize(("case", "signum"), SIGNALS)
def test_r9_a_signal_saves_at_once_and_the_run_resumes_exactly(wholes, tmp_path, case, signum):
    at = random.Random(f"{case}{signum}").randrange(1, STEPS - 1)
    run = trainer(case, tmp_path, [stop_at(at, signum)])
    with pytest.raises(Interrupted, match=f"stopped at step {at + 1} of {STEPS}, saved in ") as caught:
        run.fit()
    assert caught.value.signum == signum
    assert newest(tmp_path).name == f"step-{at + 1:08d}"
    again = trainer(case, tmp_path)
    again.fit()
    assert_same(again, wholes(case))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the handlers were put back


def test_a_resume_that_lost_a_step_is_met(wholes, tmp_path):
    """The mutant of these tests: they would see a run that takes one batch twice."""
    slips = [9]

    def slip(state, plan):
        if state.step in slips:
            state.step = slips.pop() - 1

    run = trainer("dsm", tmp_path, [slip])
    run.fit()
    with pytest.raises(AssertionError):
        assert_same(run, wholes("dsm"))


@pytest.mark.parametrize("at", [7, 10, 12, 13, 14, 18])
def test_r1_a_run_that_rolls_back_resumes_with_the_same_bits(wholes, tmp_path, at):
    """The snapshots travel in the checkpoint: stopped between a snapshot and the trouble, the answer is the same."""
    with pytest.raises(Interrupted):
        trainer("rollback", tmp_path, [stop_at(at)]).fit()
    again = trainer("rollback", tmp_path)
    again.fit()
    assert again.state.guard.rollbacks == 1
    assert_same(again, wholes("rollback"))


def test_r1_a_resume_that_forgot_the_objective_after_a_rollback_is_met(wholes, tmp_path):
    """The mutant of the test above: after the rollback the run goes on with the objective that it began with."""
    with pytest.raises(Interrupted):
        trainer("rollback", tmp_path, [stop_at(TROUBLE[-1])]).fit()
    again = trainer("rollback", tmp_path)
    again.update.objective.after_rollback = lambda times: again.update.objective
    again.fit()
    assert again.state.guard.rollbacks == 1
    with pytest.raises(AssertionError):
        assert_same(again, wholes("rollback"))


TRAIN = ["train", "two-moons", "--steps", "15", "--no-report", "-o", "my run", "train.batch_size=16", "data.limit=99"]
TRAIN += ["energy.width=16", "energy.num_blocks=1", "train.log_every=1", "train.precision=fp32"]  # "auto" is timed


def stop_after(step, signum):
    """In this process, a signal after the report of a step."""
    report = Trainer._report

    def stop(self, *args):
        report(self, *args)
        if self.state.step == step:
            os.kill(os.getpid(), signum)

    Trainer._report = stop


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_r9_the_command_says_how_to_resume_and_that_works(forked, tmp_path, signum):
    code, out, err = forked(*TRAIN, change=lambda: stop_after(6, signum)).wait()
    assert code == 128 + signum, err
    assert "Traceback" not in err
    assert out == ""
    *_, said, how = err.splitlines()
    assert said.startswith("thalweg: stopped at step 6 of 15, saved in my run")
    assert how.startswith("to go on: thalweg train two-moons --steps 15")
    assert how.endswith("--resume")
    if signum == signal.SIGINT:
        return
    words = shlex.split(how.removeprefix("to go on: thalweg "))
    code, _, err = forked(*words).wait()
    assert code == 0, err
    rows = read_metrics(tmp_path / "my run")
    assert [row["step"] for row in rows] == list(range(1, 16))
    code, _, err = forked(*TRAIN[:5], "-o", "whole", *TRAIN[7:]).wait()
    assert code == 0, err
    a, b = (tmp_path / name / "model.safetensors" for name in ("my run", "whole"))
    assert a.read_bytes() == b.read_bytes()
