"""A whole detector of tables as one graph: its scores are the library's, wherever it runs."""

import math

import numpy as np
import pytest
import torch

from thalweg.apps.anomaly.graph.kernels import KernelGraph
from thalweg.apps.anomaly.graph.table import TabularGraph
from thalweg.apps.anomaly.tabular.tabular_energy import SINGLE
from thalweg.bundle.files import load
from thalweg.core import store
from thalweg.energy.density.kde import loo_bandwidth
from thalweg.energy.density.kde_ivf import IVFKernelDensityEnergy, SearchParams
from thalweg.export.export import export
from thalweg.export.rows import hostile_rows, random_rows

ROWS = 600  # of a check; the command's 10,000 are in test_soak


def test_rounding_of_sums_in_float32_covers_what_a_graph_in_float64_gives(narrow):
    """Where rows lie many noise widths from the middle, float32 loses more than 1e-5 nats; the export allows for it."""
    energy = load(narrow, device="cpu").detector.energy_
    x = energy._checked(energy.rows_).copy()
    x[:, :2] += 0.3 * np.random.default_rng(5).normal(size=(len(x), 2))
    parts, graph = energy._parts(x), TabularGraph(energy).eval()
    rooms = energy.rounding(x, parts)
    with torch.no_grad():
        for name, scaling in graph.scalings.items():
            theirs, distance = graph.kernels[name](scaling(graph.powers(torch.from_numpy(x))))
            off = np.abs(theirs.numpy() - parts[name])
            assert (off <= rooms[name]).all()
            assert (off > SINGLE * np.maximum(1, np.abs(parts[name]))).mean() > 0.05  # a constant room is too small
            assert (rooms[name] < 0.01).all()
            if distance is not None:
                assert (np.abs(distance.numpy() - parts["distance"]) <= rooms["distance"]).all()


def test_graphs_sum_over_all_rows_where_the_library_does():
    """Rows at the edge of what their lists reach, below tau; the mutant without that condition is off by half a nat."""
    r = np.random.default_rng(0)
    centers, shapes = 4 * r.normal(size=(12, 8)), r.normal(size=(12, 3, 8))
    which, z = r.integers(0, 12, 6000), r.normal(size=(6000, 3))
    x = centers[which] + np.einsum("nk,nkd->nd", z, shapes[which]) + 0.1 * r.normal(size=(6000, 8))
    rows, new = torch.from_numpy(x[:3000]), torch.from_numpy(x[3000:])
    kernel = IVFKernelDensityEnergy(rows, t=loo_bandwidth(rows))
    known = SearchParams(128, 100.0, 0.0, 0.0, 1.1)  # nearly none above tau
    kernel = IVFKernelDensityEnergy(rows, t=kernel.t, known=(known, kernel.centers))
    graph = KernelGraph(kernel, 5).eval()
    wanted, wanted_distance = kernel.with_distances(new, 5)
    with torch.no_grad():
        found, distance = graph(new)
        assert float(((found - wanted).abs() > 1e-3).double().mean()) < 1e-3
        assert float(((distance - wanted_distance).abs() > 1e-3).double().mean()) < 1e-3
        graph.limits.fill_(math.inf)
        assert float((graph(new)[0] - wanted > 0.5).double().mean()) > 0.01


def rows_of(servable, num=200):
    typical = servable.typical_rows(num, 8)
    parts = [make(servable.inputs, servable.content, typical, 9) for make in (random_rows, hostile_rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in typical}


@pytest.mark.parametrize("name", ["small", "searched", "narrow"])
def test_onnx_runtime_without_torch_and_thalweg_gives_the_same_scores(name, request, tmp_path, elsewhere):
    found = load(request.getfixturevalue(name), device="cpu")
    export(found, tmp_path / "out", format="onnx", rows=ROWS)
    servable = found.servable()
    rows = rows_of(servable)
    theirs, ours = elsewhere(tmp_path / "out" / "energy.onnx", rows), servable.score(rows)
    assert list(theirs) == ["energy", "p_value", "flag"]
    off = np.abs(theirs["energy"] - ours["energy"]) / np.maximum(1, np.abs(ours["energy"]))
    at_steps = {"small": 0, "searched": 2, "narrow": 20}[name]  # float32 sums may fall on the other side of a step
    assert (off > 1e-4).sum() <= at_steps
    assert (theirs["flag"] == ours["flag"]).all()
    assert np.isclose(theirs["p_value"], ours["p_value"], atol=2e-3).all()
    assert 0.05 < theirs["flag"].mean() < 0.95
    store.verify(tmp_path / "out")
