"""A re-ranker on a GPU: its networks learn and score there, and choices come back to where the candidates were."""

import pytest
import torch
from torch import nn

import thalweg
from thalweg.apps.rerank.density_ratio import fit_ratio
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.rng import generator

from .simulated import GPU, REAL, gpu, same

QUICK = {"steps": 4, "ensemble": 2, "batch": 8, "check_every": 2, "patience": 1, "noise": 0.3}
IMAGES = RatioSettings(**QUICK, view="quantile_match", channels=(4,), hidden=8, damaged=0.25)
ROWS = RatioSettings(**QUICK, view="pixels", hidden=8)


def images(n, stream, low=0.0):
    x = torch.rand(n, 1, 8, 8, generator=generator(0, stream))
    return x * (low + (1 - low) * torch.rand(n, 1, 1, 1, generator=generator(0, f"{stream}-tone")))


def plane(n, stream):
    return torch.randn(n, 2, generator=generator(0, stream))


KINDS = {"images": (IMAGES, images), "rows": (ROWS, plane)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_ratio_is_learned_on_the_device(kind):
    """A mutant that leaves folds, the quantile map, lots or altered copies on the CPU is caught."""
    settings, draw = KINDS[kind]
    sides = draw(60, "real"), 0.5 * draw(60, "made")
    wanted, checked = fit_ratio(*sides, settings)
    with gpu():
        reranker = thalweg.EnergyReranker(settings=settings, device="cuda:0").fit(*sides)
        assert {t.device for t in reranker.energy.state_dict().values()} == {GPU}
        if not REAL:  # which draws other numbers
            assert same(reranker.energy(draw(9, "new").to(GPU)), wanted(draw(9, "new")))
            assert reranker.check_.loss == pytest.approx(checked.loss, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reranker_that_is_moved_chooses_as_before(kind, tmp_path):
    settings, draw = KINDS[kind]
    here = thalweg.EnergyReranker(settings=settings, device="cpu").fit(draw(60, "real"), 0.5 * draw(60, "made"))
    x = draw(30, "candidates")
    wanted, grouped = here.ranked(x, 7, force=True), here.best_of(x, 5, force=True)
    with gpu():
        here.save_pretrained(tmp_path / "run")
        there = thalweg.load(tmp_path / "run", device="cuda:0")
        for given in (x, x.to(GPU)):
            found = there.ranked(given, 7, force=True)
            assert {found.energies.device, found.order.device, found.kept.device} == {given.device}
            assert same(found.energies, wanted.energies)
            assert same(found.kept, wanted.kept)
            assert there.rank(given, force=True).device == there.energies(given).device == given.device
            best = there.best_of(given, 5, force=True)
            assert same(best, grouped)
            assert best.device == given.device
        there.save_pretrained(tmp_path / "again")
    first, second = (tmp_path / name / "model.safetensors" for name in ("run", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_module_of_the_users_gets_candidates_where_it_lies(plane):
    """And so do a bundle and a callable of features; a mutant that gives them CPU rows is caught."""
    x = torch.randn(30, 2, generator=generator(0, "candidates"))
    energy, features = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), nn.Linear(2, 3)
    wanted = thalweg.EnergyReranker(energy, features=features).rank(x, 5)
    by_bundle = thalweg.EnergyReranker(plane).energies(x)
    with gpu():
        reranker = thalweg.EnergyReranker(energy, features=features.to(GPU)).to("cuda:0")
        assert same(reranker.rank(x, 5), wanted)
        moved = thalweg.EnergyReranker(thalweg.load(plane.path, device="cpu")).to("cuda:0")
        assert moved.energy.device == GPU
        assert same(moved.energies(x), by_bundle)
