"""What hides the giveaways that all of a generator's draws share, and how much of it is chosen without labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from thalweg.apps.rerank import preprocessing as views
from thalweg.apps.rerank import preprocessing_search as trials
from thalweg.apps.rerank.density_ratio import fit_ratio
from thalweg.apps.rerank.preprocessing_search import FAINT, WIDE, ViewTrial
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.rng import generator
from thalweg.objective.base import Batch, Empty
from thalweg.objective.ratio import LikelihoodRatio

QUICK = RatioSettings(ensemble=2, steps=160, batch=32, hidden=16, channels=(8, 16), check_every=40)
SIDE = 12


def bars(n, stream, *, share_broken=0.0):
    """(images, broken): upright bars of several greys on black; broken ones have a gap of three pixels."""
    g = generator(0, stream)
    x = torch.zeros(n, 1, SIDE, SIDE)
    at, low = torch.randint(2, SIDE - 3, (n,), generator=g), torch.randint(0, 3, (n,), generator=g)
    grey, broken = 0.6 + 0.4 * torch.rand(n, generator=g), torch.rand(n, generator=g) < share_broken
    gap = torch.randint(4, 6, (n,), generator=g)
    for i in range(n):
        x[i, 0, low[i] : low[i] + 9, at[i] : at[i] + 2] = grey[i]
        if broken[i]:
            x[i, 0, gap[i] : gap[i] + 3] = 0
    return x, broken


def drawn(n, stream):
    """A generator's draws: half broken, and all on a speckled grey ground, some more and some less."""
    x, broken = bars(n, stream, share_broken=0.5)
    g = generator(0, stream + "-ground")
    ground = 0.1 + 0.1 * torch.rand(n, 1, 1, 1, generator=g) + 0.1 * torch.rand(x.shape, generator=g)
    return torch.maximum(0.95 * x, ground), broken


@pytest.fixture(scope="module")
def sets():
    return bars(300, "real")[0], drawn(300, "own")[0], *drawn(400, "candidates")


def finds_broken(energy, x, broken):
    """AUC of the energy in telling broken draws from whole ones: what a re-ranker is for."""
    return roc_auc_score(broken.numpy(), energy(x).numpy())


def test_auto_hides_what_all_draws_share_and_ranks_by_the_rest(sets):
    """Mutant: the pixels under faint noise, as before. There the sides are told apart and the ranking is worse."""
    real, own, x, broken = sets
    energy, check = fit_ratio(real, own, QUICK)
    assert check.view == energy.settings.view != "pixels"
    assert check.trials[0][:2] == ("pixels", FAINT)
    plain, told = fit_ratio(real, own, replace(QUICK, view="pixels", noise=FAINT))
    assert told.auc > 0.99
    assert told.trials == ()
    assert finds_broken(energy, x, broken) > max(0.85, finds_broken(plain, x, broken) + 0.05)


def test_auto_hides_nothing_where_nothing_helps():
    """Draws that are all too dark, and no more: hiding that would leave no order. Mutant: whatever parts best."""
    g = generator(0, "dark")
    real, dark = torch.rand(40, 1, 8, 8, generator=g), 0.5 * torch.rand(40, 1, 8, 8, generator=g)
    _, check = fit_ratio(real, dark, replace(QUICK, steps=60, channels=(4, 8)))
    assert (check.view, check.noise) == ("pixels", FAINT)
    assert check.beats_chance


def test_the_halves_are_compared_with_the_data():
    """Draws of N(2, 1), data of N(0, 1): an energy that rises to the right parts them, one that falls does the reverse,
    and one that knows nothing (the mutant) is within four deviations of zero.
    """
    g = generator(0, "halves")
    real, made = torch.randn(2000, 1, generator=g), 2 + torch.randn(2000, 1, generator=g)
    right, wrong = (trials.split_gain(u, made, real) for u in (made[:, 0], -made[:, 0]))
    blind = np.array([trials.split_gain(torch.rand(2000, generator=g), made, real) for _ in range(10)])
    assert abs(blind.mean()) < 4 * blind.std() / 10**0.5
    assert 0.5 < trials.chance(made, real) / blind.std() < 2
    assert right > 10 * blind.std()
    assert right == pytest.approx(-wrong)
    one_law = [trials.energy_distance(a, b) for a, b in pairs(g)]
    assert abs(np.mean(one_law)) < 4 * np.std(one_law) / 40**0.5, "zero in the mean; mutant: with the zero diagonals"


def test_the_fewest_rows_that_are_taken():
    """20 rows in ten folds are two a trial: a choice is made, and nothing is NaN."""
    g = generator(0, "few")
    few = replace(QUICK, ensemble=10, steps=4, check_every=2)
    _, check = fit_ratio(torch.randn(20, 2, generator=g), 1 + torch.randn(20, 2, generator=g), few)
    assert len(check.trials) == 2
    assert np.isfinite([trial.split_gain for trial in check.trials]).all()
    assert trials.split_gain(torch.zeros(1), torch.zeros(1, 2), torch.zeros(5, 2)) == 0


def pairs(g):
    """Forty pairs of small sets of one law."""
    return [(torch.randn(30, 1, generator=g), torch.randn(30, 1, generator=g)) for _ in range(40)]


def test_what_parts_best_is_taken_and_of_two_the_one_that_hides_less(monkeypatch):
    rows = torch.zeros(200, 1)
    tried = [
        ViewTrial("pixels", FAINT, 1.0, 0.1),
        ViewTrial("quantile_match", WIDE, 0.8, 0.3),
        ViewTrial("binarize", WIDE, 0.7, 0.31),
    ]
    for chance, want in ((0.0, 2), (0.01, 1), (0.11, 0)):
        monkeypatch.setattr(trials, "chance", lambda *_, chance=chance, **__: chance)
        assert trials.best(tried, rows, rows) == tried[want]
    monkeypatch.setattr(trials, "chance", lambda *_, **__: 0.0)
    blind = [tried[0], ViewTrial("quantile_match", WIDE, 0.52, 0.9)]
    assert trials.best(blind, rows, rows) == tried[0], "0.52 of 200 rows is chance"
    assert trials.best(blind[1:], rows, rows) == blind[1], "something is chosen all the same"


def test_what_is_given_is_kept():
    real = torch.rand(30, 1, 8, 8)
    assert trials.options(real, "auto", "auto") == [("pixels", FAINT), ("pixels", WIDE), ("quantile_match", WIDE)]
    assert trials.options(real, "binarize", 0.7) == [("binarize", 0.7)]
    assert trials.options(real, "quantile_match", "auto") == [("quantile_match", FAINT), ("quantile_match", WIDE)]
    assert trials.options(real, "auto", 0.5) == [("pixels", 0.5), ("quantile_match", 0.5)]
    assert trials.options(torch.rand(30, 4), "auto", "auto") == [("pixels", FAINT), ("pixels", WIDE)]


def test_binarize_is_for_writing_only():
    """Bars on black are writing; photographs on black, bright pictures and rows are not."""
    strokes = bars(50, "strokes")[0].sqrt().sqrt()  # hardly a grey
    ramp = torch.linspace(0, 1, SIDE).expand(50, 1, SIDE, SIDE)
    on_black = torch.where(torch.arange(SIDE)[:, None] < 4, ramp, 0.0)
    assert views.is_writing(strokes)
    for x in (on_black, ramp, 1 - strokes, torch.zeros(50, 3)):
        assert not views.is_writing(x)
    assert ("binarize", WIDE) in trials.options(strokes, "auto", "auto")
    assert ("binarize", WIDE) not in trials.options(on_black, "auto", "auto")


def test_the_quantile_map_is_the_optimal_map_in_one_dimension():
    """Of v and v² uniform: T(v) = v² where the data are squares; channels have maps of their own; T never falls."""
    g = generator(0, "tones")
    flat = torch.rand(400, 2, 10, 10, generator=g)
    real = torch.stack([flat[:, 0].square(), flat[:, 1]], 1)
    table = views.quantile_map(torch.rand(400, 2, 10, 10, generator=g), real)
    v = torch.linspace(0, 1, 500).view(1, 1, 20, 25).expand(1, 2, 20, 25)
    mapped = views.mapped(v, table)
    assert float((mapped[0, 0] - v[0, 0].square()).abs().max()) < 0.02
    assert float((mapped[0, 1] - v[0, 1]).abs().max()) < 0.02
    assert bool((table.diff() >= 0).all())
    assert torch.allclose(views.mapped(v, views.identity(2)), v, atol=1e-6)


def test_the_quantile_map_takes_the_ground_away_and_leave_what_only_some_draws_have(sets):
    real, own, x, _ = sets
    mapped = views.mapped(x, views.quantile_map(own, real))
    assert float((x < 0.1).float().mean()) < 0.01
    assert float((mapped < 0.01).float().mean()) > 0.8
    half = own.clone()
    half[::2] = (half[::2] + 0.3).clamp(max=1)
    odd = views.mapped(half, views.quantile_map(half, real)).mean((1, 2, 3))
    assert float(odd[::2].mean()) > 1.3 * float(odd[1::2].mean()), "a ground of half the draws is a reason still"


def test_the_quantile_map_lets_a_gradient_through():
    x = torch.full((1, 1, 8, 8), 0.4, requires_grad=True)
    g = generator(0, "slope")
    flat = torch.rand(300, 1, 10, 10, generator=g)
    views.mapped(x, views.quantile_map(flat, flat.square())).sum().backward()
    assert x.grad is not None
    assert 0.5 < float(x.grad.mean()) < 1.1, "about 2 v = 0.8"


def test_noise_of_all_scales():
    """Log-uniform between the two, a deviation a row; mutant: one deviation for all."""
    objective = LikelihoodRatio(noise=0.1, noise_max=10.0)
    batch = Batch(torch.zeros(4000, 50), torch.ones(4000))
    (z,) = objective.draw(Empty(), batch, generator(0, "scales"), 0.0)
    level = z.std(1).log10().numpy()
    assert np.allclose(np.quantile(level, [0.05, 0.5, 0.95]), [-0.9, 0, 0.9], atol=0.08)
    (one,) = LikelihoodRatio(noise=0.1).draw(Empty(), batch, generator(0, "scales"), 0.0)
    assert float(one.std(1).log10().std()) < 0.1
