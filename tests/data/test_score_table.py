"""One writer of tables: numbers that are read back as the same bits, whole files, names of any kind."""

import csv

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from thalweg.core.errors import UserError
from thalweg.data.score_table import write_scores, write_table, writer

ENERGY = torch.tensor([0.1, -1e-7, 3.0, 1 / 3, 1e20])
COLUMNS = {"energy": ENERGY, "x": torch.tensor([5932154.05, 1e-300, 2 / 3, -0.0, 7.0], dtype=torch.float64)}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_numbers_come_back_as_the_same_bits(suffix, tmp_path):
    write_table(tmp_path / f"t.{suffix}", COLUMNS)
    if suffix == "csv":
        with (tmp_path / "t.csv").open(newline="") as file:
            names, *cells = csv.reader(file)
        found = dict(zip(names, np.array(cells, float).T.copy(), strict=True))
    else:
        table = parquet.read_table(tmp_path / "t.parquet")
        found = {name: table[name].to_numpy() for name in table.column_names}
    assert list(found) == ["energy", "x"]
    for name, values in COLUMNS.items():
        assert found[name].tobytes() == values.double().numpy().tobytes()


def test_the_text_of_a_score_table(tmp_path):
    names = ["a.png", "b,c.png", 'd"e.png', "\udcff.png", ""]
    flag = torch.tensor([True, False, False, False, True])
    write_scores(tmp_path / "s.csv", names, {"energy": ENERGY, "flag": flag})
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "energy", "flag"]
    assert [row[0] for row in rows[1:]] == [*names[:3], "\\udcff.png", ""]
    assert [row[2] for row in rows[1:]] == ["True", "False", "False", "False", "True"]
    assert np.array([row[1] for row in rows[1:]], np.float32).tolist() == ENERGY.tolist()
    write_scores(tmp_path / "s.npy", names, {"energy": ENERGY})
    assert np.load(tmp_path / "s.npy").tobytes() == ENERGY.numpy().tobytes()


def test_blocks_and_what_is_missing(tmp_path):
    schema = pa.schema([("n", pa.int64()), ("why", pa.string()), ("share", pa.float64())])
    for suffix in (".csv", ".parquet"):
        with (tmp_path / f"t{suffix}").open("wb") as file:
            out = writer(file, suffix, schema)
            for n in range(2):
                out.write(pa.table({"n": [n, n], "why": [None, "a"], "share": [None, 0.5]}, schema=schema))
            out.close()
    assert (tmp_path / "t.csv").read_text() == "n,why,share\n" + "0,,\n0,a,0.5\n" + "1,,\n1,a,0.5\n"
    assert parquet.read_table(tmp_path / "t.parquet")["why"].to_pylist() == [None, "a", None, "a"]


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("earlier")
    monkeypatch.setattr("thalweg.data.score_table._CsvWriter.write", lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        write_table(tmp_path / "t.csv", COLUMNS)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
    assert (tmp_path / "t.csv").read_text() == "earlier"
    with pytest.raises(UserError, match=r"cannot write \.xlsx"):
        write_table(tmp_path / "t.xlsx", COLUMNS)
