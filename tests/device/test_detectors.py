"""Detectors on a GPU: kernels, neighbour searches, mixtures and image networks are there, arrays go in and out."""

import numpy as np
import pytest
import torch

import thalweg
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.density.kde import KernelDensityEnergy, loo_bandwidth, squared_distances
from thalweg.energy.density.kde_ivf import IVFKernelDensityEnergy

from .simulated import GPU, gpu, same


def table(n, seed=0):
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal(size=(n // 2, 3)), random.normal(3, 0.3, size=(n - n // 2, 3))])


def images(n, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 99, size=(n, 8, 8), dtype=np.uint8) + 99 * np.eye(8, dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted():
    """Detectors by kind of data, fitted on the CPU."""
    quick = {"steps": 3, "overrides": ["train.batch_size=8", "train.precision=fp32"]}
    made = {"table": (table(300), {}), "wide": (table(1500), {}), "image": (images(60), {"options": quick})}
    fit = {}
    for name, (x, options) in made.items():
        kind = "image" if name == "image" else "table"
        fit[name] = thalweg.EnergyDetector(kind=kind, random_state=0, device="cpu", **options).fit(x), x
    return fit


@pytest.mark.parametrize("kind", ["table", "wide", "image"])
def test_a_detector_that_is_moved_scores_and_explains_as_before(kind, fitted, tmp_path):
    """A mutant that leaves kernels, cells, tails or stored images behind is caught."""
    found, _ = fitted[kind]
    new = images(9, 1) if kind == "image" else table(40, 1)
    wanted, why = found.energy(new), found.explain(new[:3])
    with gpu():
        DetectorBundle(found).save_pretrained(tmp_path / "run")
        moved = thalweg.load(tmp_path / "run", device="cuda:0")
        assert moved.detector.energy_.device == GPU
        assert same(torch.from_numpy(moved.detector.energy(new)), torch.from_numpy(wanted))
        given = torch.from_numpy(new).to(GPU)
        scores = moved.score(given)
        assert {v.device for v in scores.values()} == {GPU}
        assert same(scores["energy"], torch.from_numpy(wanted))
        again = moved.detector.explain(new[:3])
        if kind == "image":
            assert same(torch.from_numpy(again.where), torch.from_numpy(why.where))
        else:
            assert [(r.feature, round(r.share, 4)) for r in again] == [(r.feature, round(r.share, 4)) for r in why]
        moved.save_pretrained(tmp_path / "again")
        first, second = (tmp_path / name / "model.safetensors" for name in ("run", "again"))
        assert first.read_bytes() == second.read_bytes()
        assert thalweg.load(tmp_path / "again", device="cpu").detector.energy_.device.type == "cpu"


@pytest.mark.parametrize("kind", ["table", "wide"])
def test_a_detector_is_fitted_on_the_device(kind, fitted):
    wanted, x = fitted[kind]
    with gpu():
        found = thalweg.EnergyDetector(random_state=0, device="cuda:0").fit(x)
        assert {kernel.rows.device for kernel in found.energy_.kernels_.values()} == {GPU}
        assert np.allclose(found.calibration_.energies, wanted.calibration_.energies, rtol=1e-4)
        assert np.allclose(found.train_scores_, wanted.train_scores_, rtol=1e-4)


def test_kernels_and_searches_read_nothing_back():
    """A mutant that asks for a distance's value, or finds a kernel by a mask, fails on the meta device."""
    rows, x = torch.randn(500, 3, device="meta"), torch.randn(70, 3, device="meta")
    assert KernelDensityEnergy(rows, t=0.1).to("meta")(x).shape == (70,)
    assert squared_distances(x, rows).topk(4, largest=False).indices.shape == (70, 4)
    mixture = MixtureOfFactorAnalyzers.example().to("meta")
    assert mixture(x, torch.ones(70, device="meta")).shape == (70,)


def test_kernels_with_cells_move():
    """A mutant whose stored sums or cells stay where they were made is caught."""
    rows, x = torch.from_numpy(table(3000)), torch.from_numpy(table(50, 1))
    energy = IVFKernelDensityEnergy(rows, t=loo_bandwidth(rows), gap=0.03)
    assert energy.search.num_candidates
    wanted, left_out = energy(x), energy.leave_one_out()
    with gpu():
        energy.to(GPU)
        assert same(energy(x.to(GPU)), wanted)
        assert same(energy.leave_one_out(), left_out)
        assert same(energy.to("cpu")(x), wanted)
