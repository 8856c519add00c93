"""What is not finite is met at its step, before the update, and never reaches a file (trust R10)."""

import math
import random

import pytest
import torch

from thalweg.core import store
from thalweg.core.errors import Diverged
from thalweg.training.metrics_log import read_metrics
from thalweg.training.state import FOLDER

from .runs import BUFFER, EVERY, STEPS, Wrapped, checkpoints, leftovers, newest, trainer

KINDS = (float("nan"), float("inf"))


def _loss(run, step, value):
    change = lambda loss, *rest: (loss + (value if run.state.step == step - 1 else 0.0), *rest)  # noqa: E731
    run.update.objective = Wrapped(run.update.objective, change)


def _gradient(run, step, value):
    last = list(run.state.energy.parameters())[-1]
    last.register_hook(lambda g: g + value if run.state.step == step - 1 else g)


def _energy(run, step, value):
    """One row's energy, whoever asks: the chain, the loss."""

    def spoil(module, args, u):
        if run.state.step != step - 1:
            return u
        add = u.new_zeros(u.shape)
        add[0] = value
        return u + add

    run.state.energy.register_forward_hook(spoil)


def _data(run, step, value):
    batch = run.update.batches.batch

    def poisoned(k):
        x, labels = batch(k)
        if k == step - 1:
            x[3].view(-1)[0] = value
        return x, labels

    run.update.batches.batch = poisoned


# where it is put: (how, under which name it is met)
POISONS = {
    "data": (_data, "data"),
    "loss": (_loss, "loss"),
    "gradient": (_gradient, "gradient"),
    "energy": (_energy, "loss"),
}


@pytest.mark.parametrize("name", POISONS)
@pytest.mark.parametrize("case", ["dual-image", "pcd-vector", "dsm"])
def test_r10_under_stop_a_value_that_is_not_finite_ends_the_run_before_the_update(tmp_path, case, name):
    rng = random.Random(f"{case}{name}")
    step, value = rng.randrange(7, STEPS), rng.choice(KINDS)
    before = {}

    def remember(state, plan):
        before.update({key: value.clone() for key, value in state.energy.named_parameters()})

    run = trainer(case, tmp_path, [remember], guard={"policy": "stop"})
    poison, said = POISONS[name]
    poison(run, step, value)
    with pytest.raises(Diverged, match=rf"^{said} is not finite at step {step}; last good checkpoint ") as caught:
        run.fit()
    error = caught.value
    assert "\n" not in str(error)
    assert run.state.step == step - 1
    assert all((value == before[key]).all() for key, value in run.state.energy.named_parameters())
    best, warnings = store.newest_valid(tmp_path / FOLDER)
    assert warnings == []
    assert best.name == f"step-{(step - 1) // EVERY * EVERY:08d}"
    assert (error.what, error.step, error.last_good) == (said, step, best)
    assert str(best) in str(error)
    assert not leftovers(tmp_path)


def assert_files_are_finite(folder):
    for name in checkpoints(folder):
        tensors = store.read_tensors(folder / FOLDER / name / "state.safetensors")
        assert all(value.isfinite().all() for value in tensors.values())


@pytest.mark.parametrize("places", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_r10_a_bad_step_is_skipped_and_the_run_ends_well(tmp_path, caplog, places):
    """Each of four poisons at its random step: met there, before the update, and no file gets it."""
    rng = random.Random(10)
    names = list(POISONS)
    for number in range(places):
        name, step, value = names[number % 4], rng.randrange(1, STEPS + 1), rng.choice(KINDS)
        before = {}

        def remember(state, plan, before=before):
            before[state.step] = {key: value.clone() for key, value in state.energy.named_parameters()}

        run = trainer("pcd-vector", tmp_path / str(number), [remember], keep=STEPS)
        poison, said = POISONS[name]
        if name == "energy":  # chains that meet it are begun anew, so only a NaN of the data's row is sure to tell
            value = float("nan")
        poison(run, step, value)
        caplog.clear()
        run.fit()
        messages = [record.getMessage() for record in caplog.records]
        assert messages == [f"{said} is not finite at step {step}; the step was skipped before it touched the weights"]
        if step > 1:
            assert all((value == before[step][key]).all() for key, value in before[step - 1].items())
        assert [row["step"] for row in read_metrics(run.folder)] == [n for n in range(1, STEPS + 1) if n != step]
        assert len(checkpoints(run.folder)) == math.ceil(STEPS / EVERY)
        assert_files_are_finite(run.folder)


def spoil_chains(run, step, slots, value):
    """After a step these chains of the buffer are not finite; a list that the next step fills with who is visited."""
    visits, draw = [], run.update.objective.draw

    def spoil(state, plan):
        if state.step == step:
            x = state.objective.x.clone()
            x[slots] = value
            state.objective = state.objective._replace(x=x)

    class Recorded(Wrapped):
        def draw(self, state, *rest):
            noise = draw(state, *rest)
            if run.state.step == step and not visits:
                visits.extend(
                    slot for slot, renew in zip(noise[0].tolist(), noise[1].tolist(), strict=True) if not renew
                )
            return noise

    run.hooks = (*run.hooks, spoil)
    run.update.objective = Recorded(run.update.objective, lambda *result: result)
    return visits


@pytest.mark.parametrize("places", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_r10_chains_in_the_buffer_that_are_not_finite_are_counted_at_that_step_and_never_written(tmp_path, places):
    """Those visited are begun anew and counted (R12), the others are met at the next save, and the run goes back."""
    rng = random.Random(11)
    back = 0
    for number in range(places):
        step, value = rng.randrange(1, STEPS - EVERY), rng.choice(KINDS)
        slots = rng.sample(range(BUFFER), (1, BUFFER // 4, BUFFER)[number % 3])
        run = trainer("pcd-vector", tmp_path / str(number), keep=STEPS)
        visits = spoil_chains(run, step, slots, value)
        run.fit()
        rows = {row["step"]: row for row in read_metrics(run.folder)}
        met = len(set(slots) & set(visits))
        assert all(row["diverged"] == 0 for row in rows.values() if row["step"] <= step)
        if met == 16:  # nothing to learn from: the loss is NaN, the step skipped
            assert step + 1 not in rows
        else:
            assert rows[step + 1]["diverged"] == met / 16
        back += run.state.guard.rollbacks
        assert run.state.guard.rollbacks <= 1
        assert run.state.objective.x.isfinite().all()
        assert_files_are_finite(run.folder)
    assert back >= places // 3  # surely where all chains were spoiled


def test_r10_under_stop_a_buffer_that_is_not_finite_ends_the_run(tmp_path):
    run = trainer("pcd-vector", tmp_path, guard={"policy": "stop"})
    spoil_chains(run, 11, list(range(BUFFER)), float("nan"))
    with pytest.raises(Diverged, match=r"at step 1[2-5].*; last good checkpoint .*step-00000010"):
        run.fit()
    assert_files_are_finite(tmp_path)


def test_r10_a_snapshot_with_a_chain_that_is_not_finite_is_not_what_the_run_goes_back_to(tmp_path, caplog):
    """A chain that no step visits shows in no signal; were it in the good snapshot, no rollback would mend anything."""
    run = trainer("pcd-vector", tmp_path)
    draw = run.update.objective.draw

    class Elsewhere(Wrapped):
        def draw(self, *args):
            slots, *rest = draw(*args)
            return torch.where(slots == 0, 1, slots), *rest

    run.update.objective = Elsewhere(run.update.objective, lambda *result: result)
    spoil_chains(run, 10, [0], float("nan"))  # there are snapshots at 12 and 15, and the save of step 15
    run.fit()
    assert run.state.guard.rollbacks == 1
    assert "objective/x is not finite at step 15; went back to the weights, the optimiser and the chains of step 6" in (
        caplog.text
    )


def spoil_average(state, plan):
    if state.step == EVERY * 2 - 1:
        state.average.net[0].weight.data[0, 0] = float("inf")


def test_r10_weights_that_are_not_finite_are_never_written(tmp_path):
    run = trainer("dsm", tmp_path, [spoil_average], guard={"policy": "stop"})
    with pytest.raises(Diverged, match=r"average/.*is not finite at step 10; last good checkpoint .*step-00000005"):
        run.fit()
    assert checkpoints(tmp_path) == ["step-00000005"]
    assert newest(tmp_path).name == "step-00000005"


def test_r10_an_average_that_is_not_finite_is_not_written_and_the_run_goes_back(tmp_path, caplog):
    run = trainer("dsm", tmp_path, [spoil_average])
    run.fit()
    assert run.state.guard.rollbacks == 1
    assert all(value.isfinite().all() for value in run.state.average.state_dict().values())
    assert "not finite at step 10; went back to" in caplog.text
