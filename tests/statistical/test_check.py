"""The level of `Diversity.check`: fresh rows of the data's law are rejected no more often than the p-value says.

A mutant that is rejected: samples beside the very rows that set the scales, which no sample can come as near to.
"""

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.monitor import diversity
from thalweg.monitor.diversity import ALARM, Diversity
from thalweg.monitor.permutation import min_rank_test

CALLS, ALPHA = 500, 1e-6


def p_values(calls=CALLS, n=20, held_out=30, d=2):
    found = []
    for i in range(calls):
        x = torch.randn(n + held_out + 40, d, generator=generator(i, "level"))
        found.append(Diversity(x[:held_out], x[held_out : held_out + 40], seed=i).check(x[held_out + 40 :]).p_value)
    return torch.tensor(found, dtype=torch.float64)


def exceeds(p, level):
    """Whether more p-values lie at or below the level than chance allows: P(Binomial >= count) <= ALPHA."""
    count = int((p <= level).sum())
    law = torch.distributions.Binomial(len(p), torch.tensor(level, dtype=torch.float64))
    at_least = law.log_prob(torch.arange(count, len(p) + 1, dtype=torch.float64)).exp().sum()
    return float(at_least) <= ALPHA


@pytest.fixture(autouse=True)
def fewer_permutations(monkeypatch):
    monkeypatch.setattr(diversity, "PERMUTATIONS", 399)
    monkeypatch.setattr(diversity, "SUBSETS", 8)  # of the sentence and the scale alone


LEVELS = (ALARM, 0.01, 0.05, 0.1, 0.25, 0.5)


def test_fresh_rows_alarm_no_more_often_than_stated():
    p = p_values()
    assert not [level for level in LEVELS if exceeds(p, level)]
    assert (p <= ALARM).double().mean() <= 0.01
    assert p.mean() < 0.75  # nor is it always large: a p-value of 1 holds every level, and sees nothing


def test_rows_that_set_the_scales_are_no_stand_in_for_the_law(monkeypatch):
    split = diversity.halves
    monkeypatch.setattr(diversity, "halves", lambda n, seed: (split(n, seed)[0], split(n, seed)[0]))
    p = p_values(150)
    assert [level for level in LEVELS if exceeds(p, level)]


def test_the_combination_is_exact_where_statistics_depend_and_tie():
    """Of 2,000 draws of exchangeable statistics, one of them coarse and one twice the same."""
    g, p = generator(0, "exchangeable"), []
    for _ in range(2000):
        a, b = torch.randn(2, 100, generator=g, dtype=torch.float64)
        p.append(min_rank_test({"a": a, "same": a, "coarse": b.round(), "skewed": -(b - a).exp()}).p_value)
    p = torch.tensor(p, dtype=torch.float64)
    assert not [level for level in (0.01, 0.05, 0.1, 0.25, 0.5) if exceeds(p, level)]
    minimum = torch.tensor([0.02], dtype=torch.float64)  # the mutant: the smallest p-value of four, not combined
    singles = torch.stack([(torch.rand(4, generator=g, dtype=torch.float64)).amin() for _ in range(2000)])
    assert exceeds(singles, float(minimum))


def test_the_worst_of_all_has_the_smallest_p_value():
    bad = torch.linspace(0, 1, 100, dtype=torch.float64)
    outcome = min_rank_test({"bad": torch.where(bad == 0, -5.0, bad), "good": bad.flip(0)})
    assert outcome.p_value == 0.01
    assert outcome.single["bad"] == pytest.approx(0.01)
    assert outcome.single["good"] == 1.0
