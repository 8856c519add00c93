"""Promised rates: simulated sets of rows against the rate, each with its error bar and a mutant that it rejects."""

import numpy as np
import pytest
from scipy import stats

from thalweg.apps.anomaly.calibration import Calibration, clopper_pearson, q_by_rank, q_values
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.drift import DriftAlarm, drift
from thalweg.apps.anomaly.tabular import tabular_energy as energies
from thalweg.core.errors import UserError

SETS = 1000
FITS, FRESH = 32, 128  # detectors, and new rows for each: the error of a mean rate is that of 64 and 32 or less


def band(rate):
    """The binomial's 99 % band for the share of SETS independent rows that are flagged."""
    low, high = stats.binom.ppf([0.005, 0.995], SETS, rate)
    return low / SETS, high / SETS


def skewed(random, n):
    """Rows of a skewed law with a heavy column and a column of few values."""
    e = random.exponential(size=(n, 3))
    return np.column_stack([e[:, 0], e[:, 0] + 0.3 * e[:, 1], random.standard_t(4, n), np.floor(2 * e[:, 2])])


@pytest.fixture(scope="module")
def simulated():
    """p-values (FITS, FRESH) of the new rows of each set, by the way of calibrating; and the mutant's."""
    found = {"unseen": [], "split": [], "in-sample": []}
    for i in range(FITS):
        random = np.random.default_rng([7, i])
        rows, fresh = skewed(random, 99), skewed(random, FRESH)
        detector = EnergyDetector(calibration="unseen", random_state=i).fit(rows)
        found["unseen"].append(detector.p_values(fresh))
        seen = Calibration(detector.energy_.energy(rows))
        found["in-sample"].append(seen.p_values(detector.energy(fresh)))
        more = np.r_[rows, skewed(random, 21)]
        detector = EnergyDetector(calibration="split", held_out=99 / 120, random_state=i).fit(more)
        found["split"].append(detector.p_values(fresh))
    return {name: np.array(p) for name, p in found.items()}


def excess(p, rate):
    """The share of flagged rows above the rate, in errors of its mean over the sets (of which each has its own)."""
    shares = (p <= rate).mean(1)
    return (shares.mean() - rate) / (shares.std(ddof=1) / len(shares) ** 0.5)


@pytest.mark.parametrize("rate", [0.05, 0.01])
@pytest.mark.parametrize("calibration", ["unseen", "split"])
def test_the_promised_rate_holds(simulated, calibration, rate):
    assert abs(excess(simulated[calibration], rate)) < 2.6


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_energies_of_seen_rows_are_rejected(simulated, rate):
    assert excess(simulated["in-sample"], rate) > 2.6


def test_the_promised_rate_holds_on_a_wide_table(monkeypatch):
    """Eight sets of 39 rows of 200 columns: at most 5 % of new rows are flagged, within 3 of the mean's errors. The
    mutant, scalings set by the rows that calibrate too, flags more by 2 of its errors.
    """

    def share(number):
        random = np.random.default_rng([8, number])
        detector = EnergyDetector(random_state=number).fit(random.normal(size=(39, 200)))
        return (detector.predict(random.normal(size=(400, 200))) == -1).mean()

    def least(shares, errors):
        return np.mean(shares) - errors * np.std(shares, ddof=1) / len(shares) ** 0.5

    found = [share(i) for i in range(8)]
    monkeypatch.setattr(energies, "needs_cross_fitting", lambda rows: False)
    mutant = [share(i) for i in range(8)]
    assert least(found, 3) <= 0.05 < least(mutant, 2)
    assert np.mean(found) > 0.01


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_ties_err_on_the_safe_side(rate):
    """Energies of few values: the rule for ties keeps the promise, a strict comparison breaks it."""
    random = np.random.default_rng(3)
    found, strict = [], []
    for _ in range(SETS):
        u = random.binomial(3, 0.1, size=100).astype(float)
        found.append(Calibration(u[1:]).p_values(u[:1])[0] <= rate)
        strict.append((1 + (u[1:] > u[0]).sum()) / 100 <= rate)
    assert np.mean(found) <= band(rate)[1]
    assert np.mean(strict) > band(rate)[1]


def test_a_row_is_flagged_where_its_p_value_says_so():
    random = np.random.default_rng(0)
    for n in (5, 19, 20, 99, 333):
        c = Calibration(random.integers(0, 12, n).astype(float))
        u = np.arange(-1, 14, 0.5)
        for rate in (0.01, 0.05, 0.1, 0.5):
            np.testing.assert_array_equal(u > c.threshold(rate), c.p_values(u) <= rate)


def test_the_interval_of_a_rate_covers_the_rate_that_comes():
    """Uniform energies: the realised rate of a threshold is known; nine in ten intervals at 90 % hold it."""
    random = np.random.default_rng(5)
    inside = 0
    for _ in range(SETS):
        c = Calibration(random.uniform(size=199))
        low, high = c.rate(0.05, level=0.9)[1:]
        inside += low <= 1 - c.threshold(0.05) <= high
    assert abs(inside / SETS - 0.9) < 2.6 * (0.09 / SETS) ** 0.5
    assert Calibration(np.arange(9.0)).rate(0.01) == (0, 0, 0)


def test_q_values_are_benjamini_and_hochbergs():
    random = np.random.default_rng(1)
    n = 50
    p = random.integers(1, n + 2, 400) / (n + 1)
    wanted = stats.false_discovery_control(p)
    np.testing.assert_allclose(q_values(p), wanted)
    counts = np.bincount(np.rint(p * (n + 1)).astype(int) - 1, minlength=n + 1)
    np.testing.assert_allclose(q_by_rank(counts)[np.rint(p * (n + 1)).astype(int) - 1], wanted)
    assert q_values(np.zeros(0)).shape == (0,)


def test_false_discoveries_stay_below_the_level():
    """900 normal and 100 odd rows a batch, reported at 10 %: the mean share of false reports, within its error."""
    random = np.random.default_rng(2)
    shares = []
    for _ in range(200):
        c = Calibration(random.normal(size=999))
        q = q_values(c.p_values(np.r_[random.normal(size=900), random.normal(size=100) + 4]))
        told = q <= 0.1
        shares.append(told[:900].sum() / max(1, told.sum()))
    assert np.mean(shares) < 0.1 + 3 * np.std(shares) / len(shares) ** 0.5
    assert np.mean(shares) > 0.05


def test_drift_is_seen_and_its_absence_too():
    random = np.random.default_rng(4)
    alarms = [drift(Calibration(random.normal(size=80)), random.normal(size=50), level=0.05).alarm for _ in range(SETS)]
    assert np.mean(alarms) <= band(0.05)[1]
    c = Calibration(random.normal(size=500))
    assert drift(c, random.normal(size=300) + 0.5).alarm
    alarm = DriftAlarm(c, level=0.01)
    assert not any(alarm.update(random.normal(size=100)).alarm for _ in range(50))
    assert alarm.update(random.normal(size=300) + 1).alarm
    with pytest.raises(UserError, match="must be 5 rows or more"):
        drift(c, np.zeros(2))


def test_recalibration_mends_a_drift():
    random = np.random.default_rng(6)
    detector = EnergyDetector(false_alarm_rate=0.05).fit(random.normal(size=(300, 2)))
    later = random.normal(size=(2000, 2)) * 1.5
    before = (detector.predict(later) == -1).mean()
    assert detector.drift(later).alarm
    detector.recalibrate(later[:1000])
    after = int((detector.predict(later[1000:]) == -1).sum())
    low, high = clopper_pearson(after, 1000)
    assert before > 0.12
    assert low < detector.realised_rate(level=0.99).high
    assert high > detector.realised_rate(level=0.99).low
    assert not detector.drift(later[1000:]).alarm
