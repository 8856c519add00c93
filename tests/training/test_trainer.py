"""The trainer's parts: schedule, average, plan, precision, settings; and that hooks and timing disturb nothing."""

import itertools
import json
import math
import os
import signal

import pytest
import torch
from torch import nn

from thalweg.core import state_tree, store
from thalweg.core.errors import DamagedFile, Diverged, UserError
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.toy import two_moons
from thalweg.data.transform import Identity
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.score.score import DenoisingScoreMatching
from thalweg.sampler.langevin import ULA
from thalweg.training import plan as planning
from thalweg.training.metrics_log import MetricsLog, read_metrics
from thalweg.training.plan import Plan, make_plan
from thalweg.training.settings import TrainSettings, validate
from thalweg.training.state import fresh
from thalweg.training.step import TRIAL_STEPS, schedule
from thalweg.training.trainer import Interrupted, Trainer


def given(**changes):
    fixed = {
        "steps": 10,
        "batch_size": 8,
        "warmup": 2,
        "log_every": 1,
        "precision": "fp32",
    }  # "auto" depends on the load
    return TrainSettings.model_validate({**fixed, **changes})


def trainer(folder, hooks=(), objective=None, **changes):
    torch.manual_seed(0)
    return Trainer(
        energy=MLPEnergy(width=8, depth=2),
        objective=objective or DenoisingScoreMatching(),
        loader=Loader(two_moons(40, generator(0, "x")), batch_size=8, seed=1),
        transform=Identity(),
        settings=given(**changes),
        folder=folder,
        seed=1,
        hooks=hooks,
        tensorboard=False,
    )


def final(run):
    return state_tree.flatten(run.state._tree())[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_schedule_warms_up_then_decays(decay):
    n = 1000
    rate = [schedule(step, n, given(warmup=50, decay=decay)) for step in range(n)]
    assert rate[:50] == [(step + 1) / 51 for step in range(50)]
    assert rate[50] == 1
    middle = 50 + (n - 50) // 2
    assert rate[middle] == pytest.approx({"constant": 1.0, "linear": 0.5, "cosine": 0.5}[decay])
    quarter = schedule(50 + 950 // 4, n, given(warmup=50, decay=decay))
    left = 1 - (950 // 4) / 950
    cosine = 0.5 * (1 + math.cos(math.pi * (1 - left)))
    assert quarter == pytest.approx({"constant": 1.0, "linear": left, "cosine": cosine}[decay])
    assert all(a >= b for a, b in itertools.pairwise(rate[50:]))
    assert 0 < rate[-1] <= (1 if decay == "constant" else 2e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 30])
def test_schedule_of_a_short_run_warms_up_for_a_tenth_at_most(num_steps):
    rate = [schedule(step, num_steps, given(warmup=200)) for step in range(num_steps)]
    assert all(0 < r <= 1 for r in rate)
    assert sum(b > a for a, b in itertools.pairwise(rate)) <= max(1, num_steps // 10)


def test_average_follows_its_formula_buffers_copied():
    net = nn.BatchNorm1d(2)
    state = fresh(net, given(), lambda _: None)
    expected = net.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, generator=generator(0, "w", step)))
            net.running_mean.fill_(step)
        state.step = step
        state.update_average(0.95)
        d = min(0.95, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * net.weight.detach()
        assert torch.allclose(state.average.weight, expected, atol=1e-5)
    assert state.average.running_mean.tolist() == [199, 199]
    assert not state.average.weight.requires_grad


def test_minutes_become_steps_by_the_median_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(planning.time, "perf_counter", lambda: clock[0])
    calls = []

    def trial(precision):
        def step():
            calls.append(precision)
            slow = len(calls) <= 2 * planning.WARM or len(calls) % 9 == 0  # warm-up and stray hiccups do not count
            clock[0] += 0.08 if slow else {"fp32": 0.025, "bf16": 0.05}[precision]

        return step

    made = make_plan(given(steps=None, minutes=2, precision="auto"), trial)
    assert (made.num_steps, made.precision, made.step_seconds) == (4800, "fp32", pytest.approx(0.025))
    assert made.checkpoint_every == 2400  # a minute's worth
    assert {calls.count(name) for name in ("fp32", "bf16")} == {planning.WARM + planning.TIMED}


@pytest.mark.parametrize(("cost", "world_size", "times"), [(80.0, 1, planning.WARM), (80.0, 2, 15), (1.5, 1, 15)])
def test_a_hopeless_precision_is_dropped_after_the_warm_up(monkeypatch, cost, world_size, times):
    """Not where several ranks meet in each step: their clocks may differ."""
    clock, calls = [0.0], []
    monkeypatch.setattr(planning.time, "perf_counter", lambda: clock[0])

    def trial(precision):
        def step():
            calls.append(precision)
            slow = calls.count(precision) == 2  # a hiccup
            clock[0] += 0.5 if slow else {"fp32": 0.01, "bf16": 0.01 * cost}[precision]

        return step

    made = make_plan(given(precision="auto"), trial, world_size)
    assert (made.precision, made.step_seconds) == ("fp32", pytest.approx(0.01))
    assert (calls.count("bf16"), calls.count("fp32")) == (times, 15)


@pytest.mark.parametrize(("world_size", "times"), [(1, 2), (2, 15)])
def test_steps_that_take_seconds_are_timed_twice(monkeypatch, world_size, times):
    clock, calls = [0.0], []
    monkeypatch.setattr(planning.time, "perf_counter", lambda: clock[0])

    def trial(precision):
        def step():
            calls.append(precision)
            clock[0] += {"fp32": 2.0, "bf16": 1.0}[precision]

        return step

    made = make_plan(given(steps=None, minutes=2, precision="auto"), trial, world_size)
    assert (made.num_steps, made.precision, len(calls)) == (120, "bf16", 2 * times)


@pytest.mark.parametrize(("cost", "chosen"), [(0.5, "bf16"), (0.89, "bf16"), (0.95, "fp32"), (1.5, "fp32")])
def test_precision_auto_takes_bf16_where_it_saves_a_tenth(monkeypatch, cost, chosen):
    clock = [0.0]
    monkeypatch.setattr(planning.time, "perf_counter", lambda: clock[0])

    def trial(precision):
        def step():
            clock[0] += cost if precision == "bf16" else 1.0

        return step

    assert make_plan(given(precision="auto"), trial).precision == chosen
    assert make_plan(given(precision="fp32"), trial).precision == "fp32"
    assert make_plan(given(precision="bf16"), trial).precision == "bf16"


@pytest.mark.parametrize(
    ("load", "slowed", "budget", "threads", "num_steps"),
    [
        (1.2, 3.0, {"minutes": 1}, 3, 60),  # a core is taken, and four threads wait for it
        (1.2, 1.05, {"minutes": 1}, 4, 57),  # that costs less than a thread is worth
        (0.3, 3.0, {"minutes": 1}, 4, 20),  # nobody else: not even tried
        (9.0, 3.0, {"minutes": 1}, 1, 60),
        (1.2, 3.0, {"steps": 7}, 4, 7),  # of a number of steps the bits do not depend on the load
    ],
)
def test_a_budget_in_minutes_leaves_cores_to_other_work(monkeypatch, load, slowed, budget, threads, num_steps):
    clock = [0.0]
    monkeypatch.setattr(planning.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(planning.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(planning.os, "getloadavg", lambda: (load, 0.0, 0.0))

    def trial(precision):
        def step():
            clock[0] += slowed if torch.get_num_threads() == 4 else 1.0

        return step

    settings = given(**{"steps": None, "precision": "fp32", **budget})
    with planning.num_threads(4):
        made = make_plan(settings, trial, may_take_fewer=True)
        assert (made.threads, made.num_steps) == (threads, num_steps)
        assert make_plan(settings, trial, world_size=2, may_take_fewer=True).threads == 4
        assert make_plan(settings, trial).threads == torch.get_num_threads() == 4


def test_timing_leaves_no_trace(tmp_path):
    """A run that was timed equals a run that found its plan, for an objective with chains."""
    objective = ContrastiveDivergence(sampler=ULA(step_size=0.01), num_steps=(1, 3), buffer_size=16, initial="normal")
    timed = trainer(tmp_path / "a", objective=objective, precision="auto")
    (tmp_path / "a").mkdir()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    timed.fit()
    assert torch.equal(before, torch.get_rng_state())  # nor does training touch the global generator
    (tmp_path / "b").mkdir()
    Plan.load(tmp_path / "a").save(tmp_path / "b")
    preset = trainer(tmp_path / "b", objective=objective, precision="auto")
    preset.fit()
    assert same(final(timed), final(preset))


def test_timing_sees_the_chains_half_grown(tmp_path):
    seen = []

    class Spy(DenoisingScoreMatching):
        def draw(self, state, batch, generator, progress):
            seen.append(progress)
            return super().draw(state, batch, generator, progress)

    run = trainer(tmp_path, objective=Spy())
    run.update.trial(run.state, "fp32")()
    assert seen == [0.5]
    assert run.state.step == 0
    assert TRIAL_STEPS > 1000


def test_hooks_see_each_step_and_disturb_nothing(tmp_path):
    seen = []

    def hook(state, plan):
        seen.append((state.step, plan.num_steps))
        state.average(torch.randn(4, 2)).sum()

    plain, hooked = trainer(tmp_path / "a"), trainer(tmp_path / "b", [hook])
    for run in (plain, hooked):
        run.folder.mkdir()
        run.fit()
    assert seen == [(step, 10) for step in range(1, 11)]
    assert same(final(plain), final(hooked))


def test_a_failing_hook_costs_no_saved_step(tmp_path):
    def hook(state, plan):
        if state.step == 10:
            raise RuntimeError("a picture could not be drawn")

    with pytest.raises(RuntimeError, match="picture"):
        trainer(tmp_path, [hook]).fit()
    assert store.newest_valid(tmp_path / "checkpoints")[0].name == "step-00000010"


def test_metrics_rows_hold_what_was_logged(tmp_path):
    run = trainer(tmp_path, log_every=4)
    run.fit()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 4, 8, 10]
    assert {"loss", "gradient_norm", "learning_rate", "seconds"} <= rows[0].keys()
    assert rows[1]["learning_rate"] == pytest.approx(1e-3 * schedule(3, 10, run.settings))


def test_rows_behind_the_checkpoint_and_a_cut_line_are_dropped(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    tracker = MetricsLog(tmp_path, 2, tensorboard=False)
    tracker.write(3, 0.5, {"loss": torch.tensor(2.0)})
    tracker.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_tensorboard_gets_the_figures(tmp_path):
    tracker = MetricsLog(tmp_path, 0)
    tracker.write(1, 0.5, {"loss": 2.0})
    tracker.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_events_past_the_checkpoint_are_passed_over(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, last in ((0, 5), (3, 7)):
        tracker = MetricsLog(tmp_path, start)
        for step in range(start + 1, last + 1):
            tracker.write(step, 0.5, {"loss": torch.tensor(float(step + start))})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 7),
        (5, 8),
        (6, 9),
        (7, 10),
    ]


def test_r6_a_log_that_finds_no_room_is_given_up_and_the_run_goes_on(tmp_path, caplog, monkeypatch):
    def no_room(self, data):
        raise OSError(28, "No space left on device")

    tracker = MetricsLog(tmp_path, 0)
    monkeypatch.setattr(type(tracker.writer.records), "write", no_room)
    tracker.file.close()
    monkeypatch.setattr(tracker, "file", Full())
    for step in (1, 2):
        assert tracker.write(step, 0.5, {"loss": 2.0}) == {"loss": 2.0}
    tracker.close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("No space left on device" in text and "training goes on" in text for text in said)


class Full:
    """A text file on a full disk."""

    closed = False

    def write(self, text):
        raise OSError(28, "No space left on device")

    def close(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"num_steps": -1}, "num_steps"),
        ({"num_steps": 1.5}, "num_steps"),
        ({"precision": "fp7"}, "precision"),
        ({"threads": 0}, "threads"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"steps": 3}, "steps"),
    ],
)
def test_a_plan_of_another_form_is_refused_by_name(tmp_path, change, where):
    good = {"num_steps": 3, "precision": "fp32", "threads": 1, "step_seconds": 0.1, "checkpoint_every": 2}
    (tmp_path / "plan.json").write_text(json.dumps(good))
    assert Plan.load(tmp_path).num_steps == 3
    (tmp_path / "plan.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(DamagedFile, match=rf"plan\.json: not a plan \({where}: ") as caught:
        Plan.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_loss_that_fails_in_the_trial_steps_says_so(tmp_path):
    class Bad(DenoisingScoreMatching):
        def loss(self, *args):
            loss, state, metrics = super().loss(*args)
            return loss * math.nan, state, metrics

    with pytest.raises(Diverged, match=r"^loss is not finite in a trial step, before any training; lower") as caught:
        trainer(tmp_path, objective=Bad()).fit()
    assert (caught.value.what, caught.value.step, caught.value.last_good) == ("loss", None, None)


def test_a_signal_while_the_plan_is_timed_stops_after_the_first_step(tmp_path, monkeypatch):
    run = trainer(tmp_path, precision="fp32")
    trial = run.update.trial

    def interrupted(state, precision):
        os.kill(os.getpid(), signal.SIGINT)
        return trial(state, precision)

    monkeypatch.setattr(run.update, "trial", interrupted)
    with pytest.raises(Interrupted, match="stopped at step 1 of 10, saved in"):
        run.fit()
    assert store.newest_valid(tmp_path / "checkpoints")[0].name == "step-00000001"


SPECS = {
    "energy": {"type": "thalweg.energy.networks.mlp:MLPEnergy"},
    "objective": {"type": "thalweg.objective.score.score:DenoisingScoreMatching"},
    "sampler": {"type": "thalweg.sampler.langevin:ULA", "step_size": 0.1},
}


@pytest.mark.parametrize(
    ("section", "changes", "argument", "hint"),
    [
        ("train", {"batchsize": 3}, "train.batchsize", "did you mean 'batch_size'?"),
        ("train", {"qqq": 3}, "train.qqq", "there are: batch_size, betas, "),
        ("train", {"batch_size": 0}, "train.batch_size", None),
        ("train", {"batch_size": "many"}, "train.batch_size", None),
        ("train", {"minutes": math.inf}, "train.minutes", None),
        ("train", {"decay": "cosin"}, "train.decay", None),
        ("train", {"betas": [0.9]}, "train.betas.1", "the recipe or an override must give it"),
        ("data", {"limi": 3}, "data.limi", "did you mean 'limit'?"),
        (None, {"enrgy": {}}, "enrgy", "did you mean 'energy'?"),
        (None, {"energy": None}, "energy", None),
        (None, {"energy": {"width": 3}}, "energy", "write `type: "),
    ],
)
def test_settings_name_key_value_and_remedy(section, changes, argument, hint):
    tree = {"data": {"name": "two-moons"}, "train": {"steps": 1}, **SPECS}
    tree = {**tree, **changes} if section is None else {**tree, section: {**tree[section], **changes}}
    with pytest.raises(UserError) as caught:
        validate(tree)
    error = caught.value
    assert error.argument == argument
    assert "\n" not in str(error)
    if hint is None:
        assert error.hint is None
        assert error.message.startswith("must be ")
        assert error.value == next(iter(changes.values()))
    else:
        assert error.hint.startswith(hint)


@pytest.mark.parametrize(
    ("section", "changes"), [("energy", {"widht": 3}), ("sampler", {"type": "thalweg.sampler.langevin:ULAA"})]
)
def test_a_slip_in_a_spec_is_met_before_anything_is_built(section, changes):
    tree = {"data": {"name": "two-moons"}, "train": {"steps": 1}, **SPECS}
    with pytest.raises(UserError, match=section):
        validate({**tree, section: {**tree[section], **changes}})


def test_a_missing_section_is_named_and_nothing_else_is_shown():
    with pytest.raises(UserError) as caught:
        validate({"data": {"name": "two-moons"}, **{k: v for k, v in SPECS.items() if k != "objective"}})
    assert str(caught.value) == "objective: missing; the recipe or an override must give it"
