"""The sequential test: what raises an alarm, what does not, and that its memory is a tree that a checkpoint holds."""

import json

import numpy as np
import pytest

from thalweg.monitor import sequential
from thalweg.monitor.figure import FIGURES

REFERENCE = {
    "vendi": (1.0, 0.03), "coverage": (0.9, 0.03), "histogram": (0.9, 0.02), "duplicates": (0.0, 0.0),
    "density": (1.0, 0.06), "nearest_train": (1.0, 0.03),
}  # fmt: skip
WELL = {name: mean for name, (mean, _) in REFERENCE.items()}


def looks(rows, memory=None):
    """What is found at each look."""
    memory, found = memory or sequential.start(), []
    for row in rows:
        memory, each = sequential.update(memory, row, REFERENCE)
        memory = json.loads(json.dumps(memory))  # as a checkpoint does
        found.append(each)
    return found, memory


def healthy(num, rng, level=1.0):
    """Looks at samples that have the data's law, times a level."""
    return [
        {name: level * mean + deviation * rng.normal() for name, (mean, deviation) in REFERENCE.items()}
        for _ in range(num)
    ]


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_a_lasting_loss_raises_one_alarm_after_two_looks_and_it_ends_when_the_loss_does(name):
    worse = 0.3 if FIGURES[name].worse == "low" else 0.6
    bad = {**WELL, name: worse}
    found, _ = looks([WELL] * 5 + [bad] * 6 + [WELL] * 6)
    assert [k for k, each in enumerate(found) if each.alarm] == [6]
    assert found[6].alarm == name
    assert found[6].best[name] == pytest.approx(WELL[name])
    assert all(each.calm for each in found[:5])
    assert not found[5].calm
    assert all(name in each.going_on for each in found[6:11])
    assert found[-1].calm


def test_one_bad_look_a_slow_gain_and_less_than_the_tolerance_raise_none():
    assert not any(each.alarm for each in looks([WELL] * 5 + [{**WELL, "coverage": 0.0}] + [WELL] * 5)[0])
    rising = [{**WELL, "coverage": 0.1 + 0.02 * k} for k in range(40)]
    assert all(each.calm for each in looks(rising)[0])
    assert not any(each.alarm for each in looks([WELL] * 5 + [{**WELL, "coverage": 0.82}] * 40)[0])


def test_more_than_the_data_have_does_not_raise_the_bar():
    """Noise has more variety than data: a run that leaves it behind has lost nothing. The mutant keeps no minimum."""
    rows = [{**WELL, "vendi": 3.0, "nearest_train": 4.0}] * 5 + [WELL] * 10
    assert all(each.calm for each in looks(rows)[0])
    mean = REFERENCE["vendi"]
    REFERENCE["vendi"] = (9.0, 0.03)  # nothing is above it
    try:
        assert any(each.alarm for each in looks(rows)[0])
    finally:
        REFERENCE["vendi"] = mean


def test_a_slow_drift_is_found():
    rows = [WELL] * 5 + [{**WELL, "density": 1.0 - 0.06 * k} for k in range(16)]
    found, _ = looks(rows)
    assert any(each.alarm == "density" for each in found)


def test_false_alarms_of_looks_at_the_datas_own_law_are_rare():
    """300 histories of 40 looks, at two levels of quality; the mutant without tolerance and drift alarms often."""
    rng = np.random.default_rng(0)
    alarms = sum(
        any(each.alarm for each in looks(healthy(40, rng, level))[0]) for level in (0.7, 1.0) for _ in range(150)
    )
    assert alarms <= 3
    kept, drift = dict(sequential.TOLERANCES), sequential.DRIFT
    try:
        sequential.TOLERANCES.update(dict.fromkeys(kept, 0.0))
        sequential.DRIFT = 0.0
        mutant = sum(any(each.alarm for each in looks(healthy(40, rng))[0]) for _ in range(50))
    finally:
        sequential.TOLERANCES.update(kept)
        sequential.DRIFT = drift
    assert mutant > 5


def test_after_an_action_there_is_time_to_recover_and_the_next_loss_is_found_again():
    bad = {**WELL, "coverage": 0.2}
    _, memory = looks([WELL] * 5 + [bad] * 2)
    memory = sequential.after_action(memory)
    assert all(each.calm for each in looks([bad] * sequential.GRACE + [WELL] * 5, memory)[0])
    found, _ = looks([bad] * 12, memory)
    assert [k for k, each in enumerate(found) if each.alarm] == [sequential.GRACE + 1]


def test_figures_without_a_reference_are_passed_over():
    found, _ = looks([{**WELL, "unknown": 0.0, "lineages": 0.0}] * 8)
    assert all(each.calm for each in found)
    assert "unknown" not in found[-1].suspicion
