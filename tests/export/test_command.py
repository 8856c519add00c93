"""`thalweg export`: what is refused, in one line and before any work, and that nothing half-written stays."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.graph import table as table_graph
from thalweg.apps.anomaly.graph.kernels import KernelGraph
from thalweg.apps.anomaly.graph.lookup import PValueGraph
from thalweg.apps.anomaly.graph.scalings import StandardGraph
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.bundle.exportable import Program
from thalweg.bundle.files import load
from thalweg.bundle.servable import TensorSpec
from thalweg.core.errors import DiskFull, UserError
from thalweg.export import formats
from thalweg.export.export import export
from thalweg.export.formats import plain
from thalweg.export.plain_onnx import OnnxGraph
from thalweg.export.rows import random_rows


def test_a_folder_with_a_manifest_and_a_table_for_machines(small, call, tmp_path):
    code, found, err = call("export", small, "-o", "out", "--rows", "200", "--json")
    assert code == 0
    assert [line for line in err if line.startswith("energy.onnx in out")]
    (graph,) = found["graphs"]
    assert [i["name"] for i in graph["inputs"]][-2:] == ["color", "site"]
    assert graph["inputs"][-1]["dtype"] == "string"
    assert graph["categories"]["color"]["codes"]["блю"] in range(4)
    assert set(found["left_out"]) == {"gradient", "step"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["energy.onnx", "manifest.json"]
    assert call("export", small, "-o", "out", "--rows", "200")[0] == 0  # an export is replaced by an export


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        (["--format", "tf", "-o", "out"], "--format='tf'"),
        (["-o", "full"], "full"),
        (["-o", "beside"], "beside"),
        (["-o", "site"], "site"),
        (["-o", "model.pt2"], "--out='model.pt2'"),
        (["-o", "folder.onnx"], "folder.onnx"),
    ],
    ids=["format", "full folder", "a file beside an export", "another's manifest", "suffix", "a folder"],
)
def test_what_is_refused_before_any_work(small, call, tmp_path, words, argument, monkeypatch):
    monkeypatch.setattr("thalweg.export.export.exportable", lambda *args: pytest.fail("worked"))
    for name, manifest in (("full", None), ("beside", '{"type": "export", "files": {}}'), ("site", "an older one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
        if manifest is not None:
            (tmp_path / name / "manifest.json").write_text(manifest)
    (tmp_path / "folder.onnx").mkdir()
    code, _, err = call("export", small, *words)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith(f"thalweg: {argument}: must")
    assert all((tmp_path / name / "mine.txt").read_text() == "mine" for name in ("full", "beside", "site"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["out", "out.onnx"])
def test_a_folder_without_the_right_to_write_is_told_before_any_work(small, call, out, monkeypatch):
    monkeypatch.setattr("thalweg.export.export.exportable", lambda *args: pytest.fail("worked"))
    monkeypatch.setattr("os.access", lambda path, mode, **how: not mode & os.W_OK)
    code, _, err = call("export", small, "-o", out)
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith(f"thalweg: {out}: must be in a folder with the right to write")


def test_a_link_to_a_folder_stays(small, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    export(load(small, device="cpu"), tmp_path / "out", format="onnx", rows=100)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "energy.onnx").is_file()


def test_no_bundle_and_a_missing_package(small, call, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert call("export", "empty", "-o", "out")[0] == 2
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else name)
    code, _, err = call("export", small, "-o", "out")
    assert (code, len(err)) == (2, 1)
    assert "thalweg[export]" in err[0]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(small, tmp_path, monkeypatch):
    def full(path, data):
        raise DiskFull("no room")

    monkeypatch.setattr("thalweg.core.store.write_bytes", full)
    with pytest.raises(DiskFull):
        export(load(small, device="cpu"), tmp_path / "out", format="onnx", rows=100)
    assert not list(tmp_path.iterdir())


def test_rows_with_gaps_and_a_column_with_an_output_s_name_are_refused(make_table, tmp_path):
    rows = make_table(60).drop(columns=["wide"])
    for frame, options, argument in (
        (rows, {"missing": "marginalise"}, "run"),
        (rows.rename(columns={"flow": "energy"}), {}, "energy"),
    ):
        bundle = DetectorBundle(EnergyDetector(random_state=0, **options).fit(frame))
        with pytest.raises(UserError) as error:
            export(bundle, tmp_path / "out", format="onnx")
        assert error.value.argument == argument


def test_a_row_that_the_detector_refuses_is_flagged(small, tmp_path, elsewhere):
    """A graph cannot raise an error, and an unknown row must not pass."""
    bundle = load(small, device="cpu")
    export(bundle, tmp_path / "d.onnx", format="onnx", rows=100)
    rows = bundle.servable().typical_rows(3, 0)
    rows["flow"] = np.array([np.nan, np.inf, rows["flow"][2]])
    found = elsewhere(tmp_path / "d.onnx", rows)
    assert np.isnan(found["energy"]).tolist() == [True, True, False]
    assert found["flag"][:2].tolist() == [True, True]


def test_columns_may_be_called_as_nodes_of_a_graph_are(tmp_path, elsewhere):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(60, 3)), columns=["/1", "/2", "/codes/c"]).assign(c=["a", "b"] * 30)
    bundle = DetectorBundle(EnergyDetector(random_state=0).fit(frame))
    export(bundle, tmp_path / "d.onnx", format="onnx", rows=100)
    rows = bundle.servable().typical_rows(20, 1)
    found = elsewhere(tmp_path / "d.onnx", rows)
    assert np.allclose(found["energy"], bundle.servable().score(rows)["energy"], rtol=1e-6)


def test_a_graph_that_is_no_valid_one_is_refused_in_a_line(small, tmp_path, monkeypatch):
    """As where torch calls a node of a trained energy's graph as a column is called."""
    monkeypatch.setattr(OnnxGraph, "_name", lambda self: "/1")
    with pytest.raises(UserError, match=r"cannot be written as ONNX .*rename a column"):
        export(load(small, device="cpu"), tmp_path / "d.onnx", format="onnx", rows=100)
    assert not (tmp_path / "d.onnx").exists()


def test_a_column_without_a_name_is_refused(tmp_path):
    """ONNX takes an input without a name for one that is not there."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["", "b"])
    bundle = DetectorBundle(EnergyDetector(random_state=0).fit(frame))
    with pytest.raises(UserError) as error:
        export(bundle, tmp_path / "d.onnx", format="onnx", rows=100)
    assert error.value.argument == "column ''"


def test_random_rows_of_a_column_as_wide_as_numbers_are():
    """Squares and ranges of it are infinite, and rows with infinity would be left out of the check."""
    largest = np.finfo(np.float64).max
    x = np.random.default_rng(0).choice([-largest, 1.0, largest], 300)
    found = random_rows([TensorSpec("a", "FP64", (-1,))], "table", {"a": x}, 0)["a"]
    assert np.isfinite(found).all()
    assert len(np.unique(found)) > 100


def test_normal_rows_whose_energy_is_set_by_rounding_are_told(tmp_path):
    """Columns over 15 powers of ten lie within rounding of each other, and random rows far from them do not show it."""
    frame = pd.DataFrame(np.exp(8 * np.random.default_rng(0).normal(size=(200, 2))), columns=["a", "b"])
    with pytest.raises(UserError, match=r"of 300 normal rows, by rounding alone.*take logarithms"):
        export(DetectorBundle(EnergyDetector(random_state=0).fit(frame)), tmp_path / "out", format="onnx", rows=3000)
    assert not (tmp_path / "out").exists()


def _rounded(self, x):
    mean = self.mean.to(torch.float32).to(torch.float64)
    return torch.maximum(torch.minimum((x - mean) / self.scale, self.bound), -self.bound)


def _without_one(self, u):
    below = self.lists.places(u[:, None]).squeeze(1)
    return (self.n - below).double() / (self.lists.lengths + 1).double()


def _to_the_first(column):
    known, _, missing = _code_of(column)
    return known, 0, missing


_code_of = table_graph.code_of
FAULTS = {
    "mean in float32": (StandardGraph, "forward", _rounded),
    "p-value without + 1": (PValueGraph, "forward", _without_one),
    "a new category is the first": ("thalweg.apps.anomaly.graph.programs", "code_of", _to_the_first),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_disagrees_is_not_written(fault, small, tmp_path, monkeypatch):
    """The written check rejects mutants of a detector's graph, and says where."""
    place, name, wrong = FAULTS[fault]
    if isinstance(place, str):
        monkeypatch.setattr(f"{place}.{name}", wrong)
    else:
        monkeypatch.setattr(place, name, wrong)
    with pytest.raises(UserError) as error:
        export(load(small, device="cpu"), tmp_path / "out", format="onnx", rows=400)
    assert error.value.argument == "graph 'energy'"
    assert not (tmp_path / "out").exists()


def test_a_search_that_is_left_out_is_found(searched, tmp_path, monkeypatch):
    """Exact sums in the place of the stored search differ by more than the check allows."""
    made = KernelGraph.__init__

    def exact(self, kernel, k=0):
        made(self, kernel, k)
        self.searches = False

    monkeypatch.setattr(KernelGraph, "__init__", exact)
    with pytest.raises(UserError):
        export(load(searched, device="cpu"), tmp_path / "out", format="onnx", rows=400)


def test_a_column_of_whole_numbers_that_are_codes(tmp_path, elsewhere):
    """Beside one that is called as values inside a graph are."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"code": random.integers(0, 4, 80), "/2": random.normal(size=80)})
    bundle = DetectorBundle(EnergyDetector(random_state=0, dtype={"code": "category"}).fit(frame))
    export(bundle, tmp_path / "d.onnx", format="onnx", rows=100)
    rows = bundle.servable().typical_rows(20, 1)
    found = elsewhere(tmp_path / "d.onnx", rows)
    assert np.allclose(found["energy"], bundle.servable().score(rows)["energy"], rtol=1e-6)


def test_an_operation_that_a_plain_graph_lacks_is_told_in_a_line():
    class Fourier(torch.nn.Module):
        def forward(self, x):
            return (torch.fft.rfft(x).abs().sum(1),)

    program = Program(
        name="energy",
        module=Fourier(),
        inputs=[TensorSpec("x", "FP32", (-1, 4))],
        outputs=[TensorSpec("energy", "FP32", (-1,))],
        reference=lambda rows: rows,
        plain=True,
    )
    with pytest.raises(UserError, match=r"graph 'energy': cannot be written as ONNX .*--format pt2"):
        plain(program, [torch.zeros(5, 4)])
