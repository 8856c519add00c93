"""What the guard does about a monitor's verdict: warn, longer chains, rollback, stop, each in one sentence."""

import logging

import pytest
import torch

from thalweg.core.errors import Diverged
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.score.score import DenoisingScoreMatching
from thalweg.sampler.langevin import ULA
from thalweg.training.guard import Guard, GuardSettings, variant_of
from thalweg.training.remedy import heed
from thalweg.training.settings import TrainSettings
from thalweg.training.signals import LEAST_LOOKS, Verdict, Watch, look_every
from thalweg.training.state import fresh

CHAINS = ContrastiveDivergence(sampler=ULA(step_size=0.01), num_steps=(4, 10), buffer_size=64)
SCORE = DenoisingScoreMatching()
CALM = Verdict(None, True, "nothing suspicious")
SUSPICIOUS = Verdict(None, False, "suspicious: coverage")
LOST = Verdict("variety", False, "the samples have lost variety: coverage 0.10, 0.80 at its best")
COPIES = Verdict("memorisation", False, "the samples are copies of training rows")


def begun(objective, **changes):
    torch.manual_seed(0)
    s = fresh(MLPEnergy(width=4, depth=2), TrainSettings.model_validate({}), lambda _: ())
    guard = Guard(GuardSettings.model_validate(changes), objective)
    guard.begin(s)
    return guard, s


def trained(s, by=1.0, steps=10):
    with torch.no_grad():
        for p in s.energy.parameters():
            p.add_(by)
    s.step += steps


def weight(s):
    return next(s.energy.parameters()).flatten()[0].item()


def test_lost_variety_makes_chains_longer_and_restarts_more_of_them(caplog):
    guard, s = begun(CHAINS)
    trained(s)
    before = weight(s)
    action = heed(guard, s, LOST, "adjust")
    now = variant_of(CHAINS, s.guard)
    assert (now.num_steps, now.reinit) == ((6, 15), 0.1)
    assert (weight(s), s.guard.rollbacks, s.guard.collapses) == (before, 0, 1)
    assert action == "set objective.num_steps from (4, 10) to (6, 15) and set objective.reinit from 0.05 to 0.1"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"{LOST.sentence} at step 10; {action}"
    heed(guard, s, LOST, "adjust")
    now = variant_of(CHAINS, s.guard)
    assert (now.num_steps, now.reinit) == ((9, 23), 0.2)
    assert "rollback 1 of 3" in heed(guard, s, LOST, "adjust")  # chains are as long as they become
    assert variant_of(CHAINS, s.guard) == now


@pytest.mark.parametrize(("objective", "verdict"), [(SCORE, LOST), (CHAINS, COPIES)], ids=["no chains", "copies"])
def test_where_longer_chains_cannot_help_the_run_goes_back_to_the_last_calm_look(objective, verdict):
    guard, s = begun(objective)
    trained(s)
    heed(guard, s, CALM, "adjust")
    calm = weight(s)
    trained(s)
    heed(guard, s, SUSPICIOUS, "adjust")  # which is no time for a snapshot
    trained(s)
    action = heed(guard, s, verdict, "adjust")
    assert weight(s) == calm
    assert (s.step, s.guard.rollbacks, s.guard.factor, s.guard.collapses) == (30, 1, 0.3, 0)
    assert "of step 10" in action
    assert "0.3 of its schedule (rollback 1 of 3)" in action


def test_before_any_calm_look_it_goes_to_the_beginning_and_after_the_last_rollback_it_ends():
    guard, s = begun(SCORE, max_rollbacks=1)
    first = weight(s)
    trained(s)
    assert "of step 0" in heed(guard, s, LOST, "rollback")
    assert weight(s) == first
    with pytest.raises(Diverged, match="after 1 rollbacks") as caught:
        heed(guard, s, LOST, "rollback")
    assert caught.value.what == "variety"


def test_warn_and_stop(caplog):
    guard, s = begun(CHAINS)
    trained(s)
    before = (weight(s), s.guard)
    with caplog.at_level(logging.WARNING):
        assert heed(guard, s, LOST, "warn") == "warned"
    assert (weight(s), s.guard) == before
    assert "the policy is to warn" in caplog.text
    with pytest.raises(Diverged, match="lost variety") as caught:
        heed(guard, s, LOST, "stop")
    assert caught.value.step == 10
    assert s.guard is before[1]


def test_a_state_that_is_not_finite_is_not_kept_as_calm():
    guard, s = begun(SCORE)
    trained(s, float("nan"))
    heed(guard, s, CALM, "adjust")
    assert s.guard.varied is None


class Clock:
    every = None
    policy = "adjust"
    least = 25
    max_cost = 0.05

    def __init__(self, seconds, every=None):
        self.taken, self.every = seconds, every

    def seconds(self, state):
        return self.taken


@pytest.mark.parametrize(
    ("signals", "steps", "expected"),
    [
        (None, 10_000, 0),
        (Clock(0.001), 10_000, 25),
        (Clock(1.0), 10_000, 2000),  # 1 s of looking in 20 s of steps of 10 ms
        (Clock(1.0), 7_000, 0),  # too few of those
        (Clock(0.001), 25 * LEAST_LOOKS - 1, 0),
        (Clock(9.0, every=3), 10, 3),
    ],
)
def test_looks_take_at_most_their_share_of_the_time(signals, steps, expected):
    assert look_every(signals, None, steps, 0.01) == expected
    watch = Watch(signals, expected)
    assert [step for step in range(1, 8) if watch.due(step)] == ([3, 6] if expected == 3 else [])
