"""How strict a choice may be: known answers with the true ratio, none where nothing is known, none that harms."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch

from thalweg.apps.rerank import held_out_check as evidence
from thalweg.apps.rerank import selection
from thalweg.apps.rerank.held_out_check import HeldOut, ShareCheck, Strictness, check_choices, strictness
from thalweg.apps.rerank.preprocessing_search import energy_distance
from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.rng import generator

SHIFT, SPREAD = 0.5, 1.6
QUICK = RatioSettings(ensemble=2, steps=100, hidden=16)


def plane(n, stream, *, spread=SPREAD, shift=SHIFT):
    """Data N(0, I) and draws N(shift, spread²)."""
    z = torch.randn(2, n, 2, generator=generator(0, stream))
    return z[0], shift + spread * z[1]


def true_energy(x):
    """-log p_data / p_gen of the plane, in closed form."""
    return x.square().sum(1) / 2 - ((x - SHIFT) / SPREAD).square().sum(1) / 2 - 2 * math.log(SPREAD)


def held_out(real, made, energies, folds=4):
    fold = torch.arange(len(made)) % folds
    return HeldOut(real, made, torch.arange(len(real)) % folds, fold, energies, made)


@pytest.fixture(scope="module")
def true_checks():
    real, made = plane(1600, "true")
    return check_choices(held_out(real, made, true_energy(made)))


@pytest.mark.parametrize("variety", ["none", "maximal_marginal_relevance"])
def test_the_true_ratio_makes_data_of_draws(true_checks, variety):
    """At every share the kept are nearer by all that a random choice is away, within three standard errors. The least
    energies alone are all near the middle, which is further from the data than the draws are: with few kept the
    temperature is not zero.
    """
    checks = true_checks[variety]
    assert [check.share for check in checks] == [0.5**k for k in range(1, len(checks) + 1)]
    assert len(checks) >= 5
    for check in checks[:5]:
        assert check.helps
        assert check.random > 0.05
        assert abs(check.nearer - check.random) < 3 * check.standard_error
    assert all(a.temperature <= b.temperature for a, b in itertools.pairwise(checks))
    assert checks[4].temperature >= 0.5


def test_the_check_rejects_mutants(monkeypatch):
    """Mutants: energies of the wrong sign; energies that know nothing; the least energies whatever the share."""
    real, made = plane(1000, "true")
    for energies in (-true_energy(made), torch.rand(1000, generator=generator(0, "blind")), made[:, 0]):
        assert strictness(check_choices(held_out(real, made, energies))["none"], 0.1) is None
    monkeypatch.setattr(evidence, "TEMPERATURES", (0.0,))
    cold = check_choices(held_out(real, made, true_energy(made)))["none"]
    assert min(check.share for check in cold if check.helps) > 1 / 32


def test_draws_of_one_law_are_left_alone():
    """Twenty times data against data, by energies that rank as a network might: never a choice. Mutant: no standard
    error, so that whatever is nearer counts.
    """
    found = []
    for repeat in range(20):
        real, made = plane(200, f"null-{repeat}", spread=1.0, shift=0.0)
        direction = torch.randn(2, generator=generator(repeat, "direction"))
        found += check_choices(held_out(real, made, 0.1 * made @ direction))["none"]
    assert sum(check.helps for check in found) <= 2, "two standard errors let 0.46 of 20 pass in the mean"
    assert sum(check.nearer > 0 for check in found) >= 4


def test_too_few_rows_are_no_evidence():
    real, made = plane(24, "few")
    assert check_choices(held_out(real, made, true_energy(made)))["none"] == ()


def test_the_distance_of_a_random_choice_has_no_bias():
    """Of energies that are all alike the kept are the first ones: nearer by zero in the mean of sixty sets. Mutant: the
    distances with the zeros of the diagonal, which favour large sets.
    """
    gains, biased = [], []
    for repeat in range(60):
        real, made = plane(80, f"bias-{repeat}")
        part = evidence._Part(held_out(real, made, torch.zeros(80), folds=2), range(2), 0)
        gains.append(float(part.nearer(0.125, 0.0, "none")[0]))
        kept = part._chosen(0.125, 0.0, "none", 0)
        biased.append(float((part.within.mean() - part.within[kept][:, kept].mean()) * -1) + gains[-1])
    assert abs(np.mean(gains)) < 3 * np.std(gains) / 60**0.5
    assert abs(np.mean(biased)) > 3 * np.std(biased) / 60**0.5


def test_first_places_follow_the_weights():
    """Of three energies at temperature 1/2 the first place has probabilities softmax(-2 u), to four standard errors.
    Mutants: temperature 1, and the sign of the noise turned (which is no Gumbel noise).
    """
    u = torch.tensor([0.0, 0.3, 1.0]).repeat(20_000)
    want = torch.softmax(-2 * torch.tensor([0.0, 0.3, 1.0]), 0)
    error = (want * (1 - want) / 20_000).sqrt()

    def first(v):
        return torch.bincount(v.view(-1, 3).argmin(1), minlength=3) / 20_000

    noisy = selection.perturbed(u, 0.5, 7, "test")
    assert bool(((first(noisy) - want).abs() < 4 * error).all())
    for mutant in (selection.perturbed(u, 1.0, 7, "test"), 2 * u - noisy):
        assert not bool(((first(mutant) - want).abs() < 4 * error).all())
    assert selection.perturbed(u, 0.0, 7) is u
    assert not torch.equal(noisy, selection.perturbed(u, 0.5, 8, "test")), "seeds share no noise"
    assert torch.equal(noisy, selection.perturbed(u, 0.5, 7, "test"))


def test_how_strict_a_choice_is():
    def row(share, temperature, nearer=1.0):
        return ShareCheck(share, temperature, 2.0, nearer, 0.1)

    rows = (row(1 / 2, 0.0), row(1 / 4, 0.25), row(1 / 8, 1.0, 0.1))
    assert strictness(rows, 1.0) == Strictness(0.0, 1.0)
    assert strictness(rows, 0.5) == Strictness(0.0, 1.0)
    assert strictness(rows, 0.3) == Strictness(0.25, 1.0)
    assert strictness(rows, 0.05) == Strictness(0.25, pytest.approx(0.2)), "1 of 4 among a fifth of the candidates"
    assert strictness(rows, 0.0) == Strictness(0.25, 0.0)
    assert strictness(rows[2:], 0.5) is None
    assert strictness((), 0.5) is None


@pytest.fixture(scope="module")
def plain():
    """A re-ranker of draws that differ plainly."""
    return EnergyReranker(settings=QUICK).fit(*plane(1200, "fit"))


def test_what_is_kept_is_nearer_than_a_random_choice(plain):
    """On fresh candidates and data, five times 1 of 30; forced, it is the middle alone, and further than both."""
    distances = {"kept": [], "random": [], "forced": []}
    for repeat in range(5):
        real, candidates = plane(1500, f"fresh-{repeat}")
        for name, chosen in (
            ("kept", plain.rank(candidates, 50)),
            ("random", torch.arange(50)),
            ("forced", plain.rank(candidates, 50, force=True)),
        ):
            distances[name].append(energy_distance(candidates[chosen], real))
    kept, random, forced = (np.array(distances[name]) for name in ("kept", "random", "forced"))
    assert (random - kept).mean() > 3 * (random - kept).std() / 5**0.5
    assert (forced - random).mean() > 3 * (forced - random).std() / 5**0.5


@pytest.fixture(scope="module")
def blind():
    """A re-ranker of draws that are data."""
    return EnergyReranker(settings=QUICK).fit(*plane(400, "one-law", spread=1.0, shift=0.0))


def test_without_evidence_the_order_given_is_kept(blind, caplog):
    x = plane(200, "new")[1]
    x[7] = x[3]  # a copy is kept once all the same
    for find, want in (
        (lambda: blind.rank(x), list(range(200))),
        (lambda: blind.rank(x, 9), [i for i in range(10) if i != 7]),
        (lambda: blind.rank(x, 200)[:199], [i for i in range(200) if i != 7]),
        (lambda: blind.best_of(x, 8), list(range(0, 200, 8))),
    ):
        assert find().tolist() == want
        told = [record for record in caplog.records if "no evidence" in record.message]
        assert [(len(told), told[0].levelno)] == [(1, logging.WARNING)]
        caplog.clear()
    u = blind.energies(x)
    assert blind.rank(x, force=True).tolist() == u.sort(stable=True).indices.tolist()
    groups = u.view(-1, 8).argmin(1) + 8 * torch.arange(25)
    assert torch.equal(blind.best_of(x, 8, force=True), groups)
    assert not caplog.records
    assert blind.rank([]).tolist() == []


def test_weak_evidence_makes_a_weak_choice(plain, caplog):
    """With 1 of 4 as the strictest choice that was shown to help, 10 kept of 400 are 10 of the first 40."""
    weak = EnergyReranker(plain.energy)
    rows = tuple(ShareCheck(share, 0.5, 1.0, 1.0, 0.1) for share in (0.5, 0.25))
    weak.check_ = plain.check_._replace(choices=dict.fromkeys(plain.check_.choices, rows))
    x = plane(400, "weak")[1]
    kept = weak.rank(x, 10)
    assert kept.max() < 40
    assert len(set(kept.tolist())) == 10
    assert "the first 10 % of the candidates" in caplog.records[0].message
    assert bool((weak.best_of(x, 40) % 40 < 10).all())
    assert weak.rank(x, 100).max() >= 200, "1 of 4 is made among all"
    assert bool((weak.rank(x, 10, force=True) >= 40).any())


def test_no_evidence_on_the_command_line(call, blind, tmp_path):
    blind.save_pretrained(tmp_path / "judge")
    np.save(tmp_path / "x.npy", plane(50, "rows")[1].numpy())
    code, told, _ = call("rerank", "judge", "x.npy", "--keep", 5, "--json")
    assert (code, told["indices"], told["strictness"]) == (0, [0, 1, 2, 3, 4], None)
    names = [line.split(",")[0] for line in (tmp_path / "ranked.csv").read_text().splitlines()[1:]]
    assert names == [str(i) for i in range(50)]
    code, told, _ = call("rerank", "judge", "x.npy", "--keep", 5, "--force", "--json")
    assert (code, told["strictness"]) == (0, {"temperature": 0.0, "considered": 1.0})
    assert told["indices"] != [0, 1, 2, 3, 4]


def test_fitting_without_evidence_says_so(call, tmp_path, caplog):
    real, made = plane(100, "say", spread=1.0, shift=0.0)
    np.save(tmp_path / "real.npy", real.numpy())
    np.save(tmp_path / "made.npy", made.numpy())
    words = ("fit", "real.npy", "made.npy", "-o", "judge", "--steps", 20, "--ensemble", 2, "--noise", 0.3)
    code, told, _ = call("rerank", *words, "--json")
    assert (code, told["choice_helps"]) == (0, False)
    assert len([record for record in caplog.records if "no evidence that choosing helps" in record.message]) == 1
