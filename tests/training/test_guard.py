"""The guard acts on what it sees: limits, patience, policies, snapshots, and the sentences it leaves (R10-R12)."""

import logging

import pytest
import torch

from thalweg.core.errors import Diverged
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.toy import two_moons
from thalweg.data.transform import Standardize
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler.langevin import ULA
from thalweg.training.guard import LIMITS, QUIET, Guard, GuardSettings, GuardState, not_finite
from thalweg.training.plan import Plan
from thalweg.training.settings import TrainSettings
from thalweg.training.state import fresh
from thalweg.training.trainer import Trainer

WELL = {
    "gap": torch.tensor(0.1), "diverged": torch.tensor(0.0), "clamped": torch.tensor(0.2),
    "chain_grad_norm": torch.tensor(1.0), "spread": torch.tensor(1.0), "lineages": torch.tensor(1.0),
}  # fmt: skip
ILL = {"gap": -101.0, "diverged": 0.6, "clamped": 0.99, "chain_grad_norm": 0.0, "spread": 0.01, "lineages": 0.2}


def given(**changes):
    return GuardSettings.model_validate({"every": 2, "patience": 3, **changes})


def state():
    torch.manual_seed(0)
    return fresh(MLPEnergy(width=4, depth=2), TrainSettings.model_validate({}), lambda _: ())


def step(guard, s, metrics):
    """One step that changes the weights, as training does, then the guard's look at it."""
    with torch.no_grad():
        for p in s.energy.parameters():
            p.add_(1.0)
    s.step += 1
    guard.check(s, metrics)


def many(guard, s, metrics, num):
    for _ in range(num):
        step(guard, s, metrics)


def first_weight(s):
    return next(s.energy.parameters()).flatten()[0].item()


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.signal)
@pytest.mark.parametrize("nan", [False, True])
def test_each_signal_beyond_its_limit_is_met_after_patience_and_named(limit, nan, caplog):
    guard, s = Guard(given()), state()
    guard.begin(s)
    ill = {**WELL, limit.signal: torch.tensor(float("nan") if nan else ILL[limit.signal])}
    for _ in range(2):
        step(guard, s, ill)
    assert s.guard.rollbacks == 0
    assert not caplog.records
    step(guard, s, ill)
    (said,) = [record.getMessage() for record in caplog.records]
    assert s.guard.rollbacks == 1
    for part in (limit.meaning, limit.signal, "at step 3", "of step 0", "0.3 of its schedule", limit.advice):
        assert part in said
    assert "\n" not in said


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.signal)
def test_a_limit_of_null_is_not_watched_and_a_missing_signal_is_no_fault(limit):
    guard, s = Guard(given(**{limit.setting: None})), state()
    guard.begin(s)
    for _ in range(8):
        step(guard, s, {**WELL, limit.signal: torch.tensor(ILL[limit.signal])})
        step(guard, s, {})
    assert s.guard.rollbacks == 0


def test_bad_steps_that_are_not_in_a_row_are_forgiven():
    guard, s = Guard(given()), state()
    guard.begin(s)
    ill = {**WELL, "gap": torch.tensor(500.0)}
    for _ in range(5):
        step(guard, s, ill)
        step(guard, s, ill)
        step(guard, s, WELL)
    assert s.guard.rollbacks == 0


def test_it_goes_back_behind_the_newest_snapshot_and_the_step_goes_on():
    """The newest snapshot may have caught the trouble already: only one that was survived counts as good."""
    guard, s = Guard(given()), state()
    start = first_weight(s)
    guard.begin(s)
    for _ in range(6):  # snapshots at 2, 4, 6
        step(guard, s, WELL)
    for _ in range(3):
        step(guard, s, {**WELL, "gap": torch.tensor(1e4)})
    assert first_weight(s) == pytest.approx(start + 4)
    assert s.step == 9
    assert (s.guard.factor, s.guard.rollbacks) == (0.3, 1)


def test_trouble_that_comes_back_soon_sends_the_run_to_its_beginning(caplog):
    guard, s = Guard(given()), state()
    start = first_weight(s)
    guard.begin(s)
    many(guard, s, WELL, 100)
    many(guard, s, {**WELL, "gap": torch.tensor(1e4)}, 3)
    assert first_weight(s) == pytest.approx(start + 98)
    many(guard, s, WELL, 10)
    many(guard, s, {**WELL, "gap": torch.tensor(1e4)}, 3)
    assert first_weight(s) == start
    assert "of step 0" in caplog.text
    many(guard, s, WELL, 100)  # long enough: this health is trusted again
    many(guard, s, {**WELL, "gap": torch.tensor(1e4)}, 3)
    assert first_weight(s) == pytest.approx(start + 98)
    assert s.guard.rollbacks == 3


def test_no_snapshot_is_taken_close_to_a_limit():
    guard, s = Guard(given()), state()
    start = first_weight(s)
    guard.begin(s)
    for _ in range(8):
        step(guard, s, {**WELL, "gap": torch.tensor(60.0)})
    for _ in range(3):
        step(guard, s, {**WELL, "gap": torch.tensor(1e4)})
    assert first_weight(s) == start


def test_it_gives_up_after_its_rollbacks_and_each_lowers_the_rate():
    guard, s = Guard(given(max_rollbacks=2, slow=0.5)), state()
    guard.begin(s)
    with pytest.raises(Diverged, match=r"drift apart .* at step 9, after 2 rollbacks$") as caught:
        many(guard, s, {**WELL, "gap": torch.tensor(1e4)}, 20)
    assert (caught.value.what, caught.value.step) == ("gap", 9)
    assert caught.value.advice == "raise objective.energy_penalty"
    assert s.guard.factor == 0.25


def test_stop_ends_at_once_and_warn_says_so_once_and_goes_on(caplog):
    s = state()
    guard = Guard(given(policy="stop"))
    with pytest.raises(Diverged, match="drift apart"):
        many(guard, s, {**WELL, "gap": torch.tensor(1e4)}, 3)
    with pytest.raises(Diverged, match="loss"):
        guard.skip(s, not_finite("loss", 3))
    guard, s = Guard(given(policy="warn")), state()
    guard.begin(s)
    for _ in range(QUIET):
        step(guard, s, {**WELL, "gap": torch.tensor(1e4)})
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    assert s.guard.good is None  # nothing is copied where nothing will be put back


def test_steps_without_a_finite_loss_are_skipped_then_undone(caplog):
    guard, s = Guard(given()), state()
    guard.begin(s)
    for _ in range(3):
        guard.skip(s, not_finite("loss", s.step + 1))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0] == "loss is not finite at step 1; the step was skipped before it touched the weights"
    assert said[1].startswith("loss is not finite at step 3, as in the 2 steps before; went back")
    assert s.step == 3


def trainer(folder, *, step_size=0.01, policy="rollback", steps=60, **train):
    x = two_moons(200, generator(0, "x"))
    torch.manual_seed(0)
    given = {"steps": steps, "batch_size": 16, "warmup": 1, "precision": "fp32", "guard": {"policy": policy}, **train}
    return Trainer(
        energy=MLPEnergy(width=16, depth=2),
        objective=ContrastiveDivergence(
            sampler=ULA(step_size=step_size), num_steps=5, buffer_size=64, initial="normal", energy_penalty=0.0
        ),
        loader=Loader(x, batch_size=16, seed=1),
        transform=Standardize().fit(x),
        settings=TrainSettings.model_validate(given),
        folder=folder,
        seed=1,
        tensorboard=False,
    )


def test_r11_a_run_that_no_rate_can_save_ends_with_one_sentence(tmp_path, caplog):
    run = trainer(tmp_path, step_size=1e38)
    plan = Plan(num_steps=60, precision="fp32", threads=1, step_seconds=0.1, checkpoint_every=1)
    plan.save(tmp_path)  # so that no trial step is needed, which would refuse these settings at once
    with pytest.raises(Diverged, match=r"after 3 rollbacks; last good checkpoint .*step-0") as caught:
        run.fit()
    assert "\n" not in str(caught.value)
    assert caplog.text.count("went back") == 3


def test_r12_one_chain_that_leaves_is_begun_anew_and_the_others_keep_their_bits(tmp_path):
    run = trainer(tmp_path)
    spoiled = trainer(tmp_path / "b")
    batch = run.update.batch(0, 0.0)
    objective = run.update.objective
    noise = objective.draw(run.state.objective, batch, generator(1, "o"), 0.0)
    slots = noise[0]
    x = spoiled.state.objective.x.clone()
    kept = ~noise[1]
    bad = int(slots[kept][0])
    x[bad] = float("inf")
    _, clean, _ = objective.loss(run.state.energy, run.state.objective, batch, noise)
    _, after, metrics = objective.loss(run.state.energy, run.state.objective._replace(x=x), batch, noise)
    others = torch.arange(64) != bad
    assert torch.equal(clean.x[others], after.x[others])
    assert after.x.isfinite().all()
    assert after.age[bad] == 0
    assert float(metrics["diverged"]) == pytest.approx(1 / 16)


def test_a_rollback_sets_what_the_objective_offers_and_says_so_once(caplog):
    objective = ContrastiveDivergence(sampler=ULA(step_size=0.01), energy_penalty=1e-3)
    guard, s = Guard(given(), objective), state()
    guard.begin(s)
    many(guard, s, {**WELL, "gap": torch.tensor(1e4)}, 6)
    first, second = [record.getMessage() for record in caplog.records]
    assert first == (
        "the energies of data and samples drift apart (gap 1e+04, limit 100) at step 3; went back to the weights, the "
        "optimiser and the chains of step 0, lowered the learning rate to 0.3 of its schedule and set "
        "objective.energy_penalty from 0.001 to 0.1 (rollback 1 of 3)"
    )
    assert second.endswith(
        "of step 0 and lowered the learning rate to 0.09 of its schedule (rollback 2 of 3); raise "
        "objective.energy_penalty if this comes back"
    )


def losses(run, trouble=()):
    """The logged losses and penalties of a run of which these steps are NaN, each step looked at."""
    seen = []

    class Spoiled:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def after_rollback(self, times):
            return Spoiled(self.inner.after_rollback(times))

        def loss(self, *args):
            loss, after, metrics = self.inner.loss(*args)
            seen.append((loss.item(), self.inner.energy_penalty))
            return loss * (float("nan") if len(seen) in trouble else 1.0), after, metrics

    run.update.objective = Spoiled(run.update.objective)
    Plan(num_steps=60, precision="fp32", threads=1, step_seconds=0.1, checkpoint_every=100).save(run.folder)
    run.fit()
    return seen


def test_only_a_run_that_went_back_goes_on_with_the_objective_after_a_rollback(tmp_path):
    """Before the trouble, and in a run without any, each loss has the bits of a run whose guard only warns."""
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    watched = losses(trainer(tmp_path / "b", policy="warn"))
    assert losses(trainer(tmp_path / "c")) == watched
    assert {penalty for _, penalty in watched} == {0.0}
    seen = losses(trainer(tmp_path, guard={"every": 5, "patience": 1}), trouble=[31])
    assert seen[:31] == watched[:31]
    assert [penalty for _, penalty in seen] == [0.0] * 31 + [0.1] * 29


def test_defaults_are_a_state_that_can_be_stored():
    assert GuardState().factor == 1.0
    assert TrainSettings.model_validate({}).guard.policy == "rollback"
