"""`realised_rate()` is the rate of the rule that flags, energies that tie included."""

import itertools

import numpy as np
import pytest
from scipy import stats

from thalweg.apps.anomaly.calibration import Calibration
from thalweg.apps.anomaly.detector import EnergyDetector

SETS = 400


def samples(probabilities, n):
    """Each set of n energies 0, 1, … of these probabilities, sorted, and how likely it is."""
    values = range(len(probabilities))
    for sample in itertools.combinations_with_replacement(values, n):
        counts = [sample.count(value) for value in values]
        yield np.array(sample, float), stats.multinomial.pmf(counts, n, probabilities)


def status(random, n):
    return random.choice([200.0, 301.0, 404.0, 503.0], (n, 1), p=[0.7, 0.2, 0.07, 0.03])


def levels(random, n):
    return random.choice(3, (n, 2), p=[0.6, 0.3, 0.1]).astype(float)


def test_two_values():
    """37 rows of one value and 13 of the other, a share of 0.3 to be flagged: the 13 are, which is 26 %."""
    rows = np.r_[np.ones(37), -np.ones(13)][:, None]
    detector = EnergyDetector(contamination=0.3, random_state=0).fit(rows)
    assert (detector.predict(rows) == -1).mean() == 0.26
    rate = detector.realised_rate()
    assert rate.expected == pytest.approx(0.26)
    assert rate.low < 0.26 < rate.high
    assert detector.rate_ < 0.3


@pytest.mark.parametrize("probabilities", [[0.74, 0.26], [0.5, 0.3, 0.2], [0.9, 0.1], [0.2] * 5, [0.97, 0.02, 0.01]])
@pytest.mark.parametrize(("n", "rate"), [(4, 0.2), (4, 0.4), (5, 0.4), (6, 0.3)])
def test_the_expected_rate_by_enumeration(probabilities, n, rate):
    """Every set of n energies of a law of few values, with its probability: the mean of the expected rate against that
    of the rate that comes, within 0.035; the mutant, k / (n + 1) ties or not, is off by three times as much and more.
    """
    p, values = np.array(probabilities), np.arange(len(probabilities), dtype=float)
    true = expected = mutant = 0.0
    for u, weight in samples(p, n):
        c = Calibration(u)
        true += weight * p[values > c.threshold(rate)].sum()
        expected += weight * c.rate(rate).expected
        mutant += weight * c.rank_of(rate) / (n + 1)
    assert abs(expected - true) < 0.035
    assert abs(mutant - true) > 3 * abs(expected - true)


@pytest.mark.parametrize("n", [5, 7])
def test_the_share_above_the_next_rank_is_unbiased(n):
    """Of n energies the share that exceeds the threshold of the n - 1 others is, on average, the rate of n - 1."""
    p, values, k = np.array([0.5, 0.3, 0.2]), np.arange(3.0), 2
    means = []
    for size in (n - 1, n):
        shares = [(p[values > u[-k]].sum() if size < n else (u > u[-k - 1]).mean(), w) for u, w in samples(p, size)]
        means.append(sum(share * weight for share, weight in shares))
    assert means[0] == pytest.approx(means[1], abs=1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.3])
@pytest.mark.parametrize("n", [50, 199])
def test_the_interval_covers_with_ties(n, rate):
    """Geometric energies, whose rate above each threshold is known: nine in ten intervals at 90 % hold it, and the mean
    of the expected rates is the mean of the rates, within 4 errors; k / (n + 1) is not.
    """
    random, inside, off, mutant = np.random.default_rng(0), 0, [], []
    for _ in range(SETS):
        c = Calibration(random.geometric(0.5, n).astype(float))
        true, found = 0.5 ** c.threshold(rate), c.rate(rate, level=0.9)
        inside += found.low <= true <= found.high
        off.append(found.expected - true)
        mutant.append(c.rank_of(rate) / (n + 1) - true)
    assert inside / SETS > 0.9 - 2.6 * (0.09 / SETS) ** 0.5
    error = np.std(off) / SETS**0.5
    assert abs(np.mean(off)) < 4 * error
    assert abs(np.mean(mutant)) > 4 * error


@pytest.mark.parametrize("keywords", [{"contamination": 0.3}, {"false_alarm_rate": 0.2}, {"calibration": "split"}])
@pytest.mark.parametrize("law", [status, levels])
def test_the_rate_of_a_detector_of_values_that_repeat(law, keywords):
    """Twelve detectors of 60 rows: expected rates against the shares of 2,000 new rows flagged, within 3 errors."""
    off = []
    for seed in range(12):
        random = np.random.default_rng([6, seed])
        detector = EnergyDetector(random_state=seed, **keywords).fit(law(random, 60))
        flagged = (detector.predict(law(random, 2000)) == -1).mean()
        off.append(detector.realised_rate().expected - flagged)
    assert abs(np.mean(off)) < 3 * np.std(off, ddof=1) / len(off) ** 0.5 + 0.01
