"""Drift: hardly ever found where there is none, values that repeat included, and found where there is one."""

import numpy as np
import pandas as pd
import pytest

from thalweg.apps.anomaly.calibration import Calibration
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.drift import drift

LEVEL = 0.01
LAWS = {
    "one column": lambda r, n: r.normal(size=(n, 1)),
    "zeros and numbers": lambda r, n: np.where(r.random((n, 3)) < 0.6, 0, r.lognormal(size=(n, 3))),
    "levels": lambda r, n: r.integers(0, 3, (n, 4)).astype(float),
    "counts": lambda r, n: r.poisson(2, (n, 3)).astype(float),
    "one status": lambda r, n: r.choice([200.0, 301.0, 404.0, 503.0], (n, 1), p=[0.7, 0.2, 0.07, 0.03]),
    "status and number": lambda r, n: pd.DataFrame(
        {"status": r.choice(["OK", "WARN", "FAIL"], n, p=[0.9, 0.08, 0.02]), "value": r.normal(size=n).round(1)}
    ),
    "kinds of a thing": lambda r, n: np.random.default_rng(7).normal(size=(25, 3))[r.integers(0, 25, n)],
}


@pytest.fixture(scope="module", params=LAWS)
def fitted(request):
    """(law, four detectors of 300 rows of it, each with four batches of 200 new rows)."""
    law, found = LAWS[request.param], []
    for seed in range(4):
        random = np.random.default_rng([5, seed])
        detector = EnergyDetector(random_state=seed).fit(law(random, 300))
        found.append((detector, [law(random, 200) for _ in range(4)]))
    return law, found


def test_a_batch_of_the_same_law_is_no_drift(fitted):
    """The share of alarms at the level of 0.01, within 3 errors of the mean over detectors."""
    alarms = [[detector.drift(batch, level=LEVEL).alarm for batch in batches] for detector, batches in fitted[1]]
    shares = np.mean(alarms, axis=1)
    assert shares.mean() <= LEVEL + 3 * np.sqrt(LEVEL / shares.size / 4)
    alarm = fitted[1][0][0].drift_alarm(level=LEVEL)
    assert not any(alarm.update(fitted[1][0][0].energy(batch)).alarm for batch in fitted[1][0][1])


def test_another_law_is_a_drift(fitted):
    """Most rows of a batch are moved out of the range of the fit."""
    for detector, batches in fitted[1]:
        x = batches[0]
        odd = np.random.default_rng(0).random(len(x)) < 0.7
        if isinstance(x, pd.DataFrame):
            moved = x.assign(value=x["value"].where(~odd, 9.0))
        else:
            moved = np.where(odd[:, None], x + 9, x)
        assert detector.drift(moved).alarm


def test_the_plain_test_would_call_it_a_drift():
    """The mutant, energies left out taken for independent ones, alarms in most batches of zeros and numbers."""
    law, alarms = LAWS["zeros and numbers"], []
    for seed in range(3):
        random = np.random.default_rng([5, seed])
        detector = EnergyDetector(random_state=seed).fit(law(random, 300))
        mutant = Calibration(detector.energy_.calibration_energies_)
        alarms += [drift(mutant, detector.energy(law(random, 200))).alarm for _ in range(3)]
    assert np.mean(alarms) > 0.5


@pytest.mark.parametrize("law", ["levels", "one status"])
def test_equal_rows_tie_whatever_the_order_of_summation(law):
    """Rows held out: energies that differ by rounding are those of equal rows."""
    random = np.random.default_rng(0)
    detector = EnergyDetector(calibration="split", random_state=0).fit(LAWS[law](random, 400))
    u = detector.energy(LAWS[law](random, 200))
    for sign in (-1, 1):
        found = drift(detector.calibration_, u * (1 + sign * 1e-13) + sign * 1e-13)
        assert found.p_value == pytest.approx(drift(detector.calibration_, u).p_value)
        assert not found.alarm
    p = [detector.calibration_.p_values(u * (1 + sign * 1e-13)) for sign in (-1, 1)]
    np.testing.assert_allclose(*p, atol=1.01 / 101)  # one row may tie with none of the others


def test_a_law_of_one_value_has_no_drift_to_itself():
    detector = EnergyDetector(random_state=0).fit(np.full((40, 2), 3.0))
    assert detector.drift(np.full((30, 2), 3.0)).p_value == 1
