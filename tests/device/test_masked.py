"""Masked steps, their notes and the guard that reads them: by numbers, on the CPU, beside steps that raise (R10)."""

import copy
import math

import pytest
import torch

from thalweg.core.errors import Diverged
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.toy import two_moons
from thalweg.data.transform import Identity, Standardize
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler.langevin import ULA
from thalweg.training.guard import QUIET, Guard
from thalweg.training.plan import Plan
from thalweg.training.settings import TrainSettings
from thalweg.training.step import Update, run_steps
from thalweg.training.trainer import Interrupted, Trainer

STEPS = 24
X = two_moons(90, generator(0, "moons"))
CHAINS = ContrastiveDivergence(
    sampler=ULA(step_size=0.01), num_steps=(1, 3), buffer_size=48, initial="normal", energy_penalty=0.0
)


class Spoilt:
    """An objective whose loss is NaN where `when` says so."""

    def __init__(self, objective, when, value=math.nan):
        self.objective, self.when, self.value = objective, when, value

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def after_rollback(self, times):
        return Spoilt(self.objective.after_rollback(times), self.when, self.value)

    def loss(self, *args):
        loss, *rest = self.objective.loss(*args)
        return (loss * self.value if self.when() else loss, *rest)


class Training:
    """A run of steps that are masked, as on a device, or raise; weights and metrics after each."""

    def __init__(self, *, masked, trouble=(), gap=(), objective=CHAINS, **settings):
        torch.manual_seed(0)
        guard = {"every": 3, "patience": 2, **settings.pop("guard", {})}
        given = {"steps": STEPS, "batch_size": 16, "precision": "fp32", "log_every": 1, "guard": guard, **settings}
        self.settings = TrainSettings.model_validate(given)
        loader, transform = Loader(X, batch_size=16, seed=3), Standardize().fit(X)
        when = lambda: self.state.step + 1 in trouble  # noqa: E731
        self.update = Update(Spoilt(objective, when), loader, transform, self.settings, 3)
        self.update.masked = masked
        self.state = self.update.first_state(MLPEnergy(shape=(2,), width=16, depth=2))
        self.guard = Guard(self.settings.guard, objective)
        self.gap, self.weights, self.metrics = gap, {}, {}

    def run(self):
        for metrics in run_steps(self.update, self.state, self.guard, STEPS, "fp32"):
            self.weights[self.state.step] = copy.deepcopy(self.state.energy.state_dict())
            self.metrics[self.state.step] = {name: float(value) for name, value in metrics.items()}
        return self


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def near(a, b):
    return all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-7) for name in a)


@pytest.mark.parametrize("trouble", [(), (7,), (7, 8), (5, 6, 14, 15, 20)], ids=str)
def test_masked_steps_read_one_by_one_are_those_that_raise(trouble, caplog):
    """The same bits of weights and chains, metrics, rollbacks and sentences; the average to rounding."""
    runs, said = [], []
    for masked in (False, True):
        caplog.clear()
        runs.append(Training(masked=masked, trouble=trouble).run())
        said.append([record.getMessage() for record in caplog.records])
    raised, masked = runs
    assert said[0] == said[1]
    assert len(said[0]) == {(): 0, (7,): 1, (7, 8): 2}.get(trouble, 5)
    assert all(same(masked.weights[n], raised.weights[n]) for n in range(1, STEPS + 1))
    assert torch.equal(masked.state.objective.x, raised.state.objective.x)
    assert masked.metrics == raised.metrics
    assert near(masked.state.average.state_dict(), raised.state.average.state_dict())
    assert masked.state.guard.rollbacks == raised.state.guard.rollbacks
    assert masked.state.guard.good["step"] == raised.state.guard.good["step"]


def steps_of(state):
    return {float(s["step"]) for s in state.optimizer.state.values()}


@pytest.mark.parametrize("where", ["data", "loss", "gradient"])
def test_a_masked_step_changes_nothing_but_its_number_and_its_cause_is_told_later(where, caplog):
    run = Training(masked=True, trouble=(7,) if where == "loss" else (), log_every=10)
    if where == "gradient":
        last = list(run.state.energy.parameters())[-1]
        last.register_hook(lambda g: g + math.inf if run.state.step == 6 else g)
    if where == "data":
        batch = run.update.batches.batch
        run.update.batches.batch = lambda n: (batch(n)[0] * (math.nan if n == 6 else 1), None)
    seen, before = [], {}
    for _ in run_steps(run.update, run.state, run.guard, STEPS, "fp32"):
        state = run.state
        now = [*state.energy.parameters(), *state.average.parameters(), *state.objective[:3]]
        now += [s[name] for s in state.optimizer.state.values() for name in ("step", "exp_avg", "exp_avg_sq")]
        if state.step == 7:
            assert all(torch.equal(a, b) for a, b in zip(now, before["all"], strict=True))
            assert not caplog.records
        elif before:
            assert not torch.equal(now[0], before["all"][0])
        before["all"] = [t.clone() for t in now]
        seen.append(len(caplog.records))
    assert seen == [0] * 9 + [1] * (STEPS - 9)  # told with the tenth step
    (said,) = caplog.records
    assert said.getMessage() == f"{where} is not finite at step 7; the step was skipped before it touched the weights"


def test_bad_steps_in_a_row_between_two_readings_lead_to_one_rollback(caplog):
    run = Training(masked=True, trouble=(12, 13, 14), log_every=10).run()
    first, second = [record.getMessage() for record in caplog.records]
    assert first == "loss is not finite at step 12; 3 steps since then were skipped before it touched the weights"
    assert second.startswith("loss is not finite at step 13, as in the 1 steps before; went back to the weights")
    assert "set objective.energy_penalty from 0.0 to 0.1" in second
    assert (run.state.guard.rollbacks, run.state.guard.acted) == (1, 20)
    assert all(value.isfinite().all() for value in run.weights[STEPS].values())
    assert run.metrics[20]
    assert not run.metrics[13]


def test_a_count_in_a_row_goes_on_across_a_reading():
    run = Training(masked=True, trouble=(10, 11), log_every=10).run()
    assert (run.state.guard.rollbacks, run.state.guard.acted) == (1, 20)
    assert Training(masked=True, trouble=(10, 12), log_every=10).run().state.guard.rollbacks == 0


def test_a_step_that_was_masked_is_not_logged():
    run = Training(masked=True, trouble=(10,), log_every=10).run()
    assert [n for n, figures in run.metrics.items() if figures] == [1, 20, 24]


def test_under_stop_the_first_cause_ends_the_run_with_the_next_reading():
    run = Training(masked=True, trouble=(12, 13), log_every=10, guard={"policy": "stop"})
    with pytest.raises(Diverged) as caught:
        run.run()
    assert (caught.value.what, caught.value.step, run.state.step) == ("loss", 12, 20)
    assert all(value.isfinite().all() for value in run.state.energy.state_dict().values())


@pytest.mark.parametrize("policy", ["rollback", "warn", "stop"])
@pytest.mark.parametrize("signal", ["max_gap", "min_spread", "max_clamped"])
def test_signals_beyond_their_limit_are_met_as_step_by_step(policy, signal, caplog):
    """By limits that are always passed: the same steps, sentences and values, and quiet after a warning."""
    limit = {"max_gap": 1e-9, "min_spread": 1e9, "max_clamped": 1e-9}[signal]
    said, ends = [], []
    objective = ContrastiveDivergence(sampler=ULA(step_size=0.01, clamp=(-1, 1)), buffer_size=48, initial="normal")
    for masked in (False, True):
        caplog.clear()
        run = Training(masked=masked, objective=objective, guard={"policy": policy, signal: limit, "patience": 3})
        try:
            run.run()
        except Diverged as error:
            ends.append((str(error), error.step, error.advice))
        said.append([record.getMessage() for record in caplog.records])
        assert run.state.guard.strikes == (STEPS - 3 - QUIET if policy == "warn" else run.state.guard.strikes)
    assert said[0] == said[1]
    assert len(said[0]) == {"rollback": 3, "warn": 1, "stop": 0}[policy]
    assert len(ends) in (0, 2)
    assert policy == "warn" or ends[0] == ends[1]


def trainer(folder, trouble, **settings):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    Plan(num_steps=STEPS, precision="fp32", threads=1, step_seconds=0.01, checkpoint_every=3).save(folder)
    guard = {"every": 3, "patience": 2}
    given = {"steps": STEPS, "batch_size": 16, "log_every": 10, "guard": guard, **settings}
    run = Trainer(
        energy=MLPEnergy(shape=(2,), width=16, depth=2),
        objective=CHAINS,
        loader=Loader(X, batch_size=16, seed=3),
        transform=Identity(),
        settings=TrainSettings.model_validate(given),
        folder=folder,
        seed=3,
        tensorboard=False,
    )
    run.update.objective = Spoilt(CHAINS, lambda: run.state.step + 1 in trouble)
    run.update.masked = True
    return run


@pytest.mark.parametrize("on_cpu", [False, True])
def test_notes_that_were_not_read_are_in_the_checkpoint(tmp_path, caplog, on_cpu):
    """A run that stops between two readings goes on with the same bits; on the CPU they are told at its start."""
    whole = trainer(tmp_path / "whole", (12, 13))
    whole.fit()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    run = trainer(tmp_path / "run", (12, 13))
    run.hooks = (lambda state, plan: (_ for _ in ()).throw(Interrupted("", 2)) if state.step == 15 else None,)
    with pytest.raises(Interrupted):
        run.fit()
    caplog.clear()
    again = trainer(tmp_path / "run", (12, 13))
    again.update.masked = not on_cpu
    again.fit()
    assert [record.getMessage() for record in caplog.records] == told
    if not on_cpu:
        assert same(again.state.energy.state_dict(), whole.state.energy.state_dict())
        assert torch.equal(again.state.objective.x, whole.state.objective.x)
    assert again.state.guard.rollbacks == 1


def test_a_mask_that_lets_the_step_pass_is_met(monkeypatch):
    """The mutant of these tests: the optimiser takes the step whatever the flag says."""
    from thalweg.core.device import MaskableAdamW

    monkeypatch.setattr(MaskableAdamW, "masked_step", lambda self, bad: self.step())
    run = Training(masked=True, trouble=(7,)).run()
    assert not all(value.isfinite().all() for value in run.weights[7].values())
