"""A whole detector of tables as one graph: its scores are the library's, wherever it runs."""

import numpy as np
import pytest

from thalweg.bundle.files import load
from thalweg.core import store
from thalweg.export.export import export
from thalweg.export.rows import hostile_rows, random_rows

ROWS = 600  # of a check; the command's 10,000 are in test_soak


def rows_of(servable, num=200):
    typical = servable.typical_rows(num, 8)
    parts = [make(servable.inputs, servable.content, typical, 9) for make in (random_rows, hostile_rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in typical}


@pytest.mark.parametrize("name", ["small", "searched"])
def test_onnx_runtime_without_torch_and_thalweg_gives_the_same_scores(name, request, tmp_path, elsewhere):
    found = load(request.getfixturevalue(name), device="cpu")
    export(found, tmp_path / "out", format="onnx", rows=ROWS)
    servable = found.servable()
    rows = rows_of(servable)
    theirs, ours = elsewhere(tmp_path / "out" / "energy.onnx", rows), servable.score(rows)
    assert list(theirs) == ["energy", "p_value", "flag"]
    off = np.abs(theirs["energy"] - ours["energy"]) / np.maximum(1, np.abs(ours["energy"]))
    assert (off > 1e-4).sum() <= (0 if name == "small" else 2)  # float32 sums may fall on the other side of a step
    assert (theirs["flag"] == ours["flag"]).all()
    assert np.isclose(theirs["p_value"], ours["p_value"], atol=2e-3).all()
    assert 0.05 < theirs["flag"].mean() < 0.95
    store.verify(tmp_path / "out")
