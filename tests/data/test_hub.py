"""The package `datasets`, where it is installed: what a set of the Hub gives, read as `data.catalog` reads it."""

import importlib
import io
import os
import sys
import types

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from thalweg.core.errors import UserError
from thalweg.data import stored_rows
from thalweg.data.catalog import load
from thalweg.data.options import DataOptions

OLDEST = "THALWEG_OLDEST" in os.environ  # where it must be installed


def _png(value):
    held = io.BytesIO()
    Image.fromarray(np.full((28, 28), value, np.uint8)).save(held, "PNG")
    return {"bytes": held.getvalue(), "path": None}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_set_of_the_hub_is_read(tmp_path, monkeypatch):
    datasets = importlib.import_module("datasets") if OLDEST else pytest.importorskip("datasets")
    n = 40
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("0123456789")))
    rows = {"image": [_png(i) for i in range(n)], "label": [i % 10 for i in range(n)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    real = datasets.load_dataset

    def fetch(name, split):
        return real("parquet", data_files={"train": str(tmp_path / "train.parquet")}, split=split, cache_dir=tmp_path)

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    found = load("mnist", DataOptions(hub=True))
    assert found.shape == (1, 28, 28)
    assert len(found.train) + len(found.held_out) == n
    assert "from the Hub" in found.source


class Feature:
    """A column of the fake package: `datasets` tells columns apart by their classes' names."""

    def __init__(self, decode=True, names=()):
        self.decode, self.names = decode, names


class FakeSet:
    """What is used of a set of `datasets`, on an Arrow table."""

    def __init__(self, table, features):
        self.table, self.features = table, features

    column_names = property(lambda self: self.table.column_names)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.table[key].to_pylist()
        return self.table.take(key) if isinstance(key, list) else self.table[key]

    def cast_column(self, name, feature):
        assert feature.decode is False
        return self

    def select_columns(self, names):
        return FakeSet(self.table.select(names), self.features)

    def with_format(self, name):
        assert name == "arrow"
        return self


@pytest.fixture
def fake(monkeypatch):
    """The package, with one set, `user/digits`."""
    image, kind = type("Image", (Feature,), {}), type("ClassLabel", (Feature,), {})
    rows = {"image": [_png(i) for i in range(40)], "label": [i % 2 for i in range(40)], "n": list(range(40))}
    found = FakeSet(pa.table(rows), {"image": image(), "label": kind(names=["even", "odd"]), "n": Feature()})

    def load_dataset(name, config, split):
        if (name, config, split) != ("user/digits", "small", "test"):
            raise ConnectionError("cannot reach\nthe Hub")
        return found

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.parametrize("kept", [0, 1 << 28])
def test_a_set_of_the_hub_by_its_name(fake, kept, monkeypatch) -> None:
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", kept)
    where = {"config": "small", "split": "test"}
    data = load("hub:user/digits", DataOptions(**where, labels="label"))
    assert data.shape == (1, 28, 28)
    assert isinstance(data.train, stored_rows.StoredRows) == (kept == 0)
    assert data.class_names == ("even", "odd")
    assert torch.equal(data.train[:][:, 0, 0, 0] % 2, data.train_labels)
    assert "hub:user/digits, split test" in data.source
    numbers = load("hub:user/digits", DataOptions(**where, drop=["image"]))
    assert numbers.layout.names == ["label"]  # `n` counts the rows, which is said
    small = load("hub:user/digits", DataOptions(**where, column="image", size=8))
    assert small.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"split": "train", "config": "small"}, r"cannot be fetched \(cannot reach the Hub\); check its name"),
        ({"split": "test", "config": "small", "column": "photo"}, "no column 'photo'; there are image, label, n"),
        ({"split": "test", "config": "small", "labels": "kind"}, "no column 'kind'"),
        ({"split": "test", "config": "small", "column": "n"}, "must hold the bytes of image files, and holds int64"),
        ({"length": 3}, "data.length: is for texts, and hub:user/digits is a set of the Hub; leave it out"),
    ],
)
def test_what_is_wrong_with_a_set_of_the_hub_is_one_line(fake, options, what) -> None:
    with pytest.raises(UserError, match=what) as caught:
        load("hub:user/digits", DataOptions(**options))
    assert "\n" not in str(caught.value)


def test_labels_are_read_as_those_of_a_table(fake, monkeypatch, tmp_path) -> None:
    """Whole numbers without names are numbered in their order; a class that the set's names do not have is refused."""
    kind = type("ClassLabel", (Feature,), {})
    x = np.random.default_rng(0).normal(size=60)
    columns = {"x": x, "code": [10, 9, 100] * 20, "mark": [-1, 0, 1] * 20}
    features = {"x": Feature(), "code": Feature(), "mark": kind(names=["odd", "even"])}
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, **__: FakeSet(pa.table(columns), features))
    found = load("hub:user/codes", DataOptions(labels="code", drop=["mark"]))
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = load(str(tmp_path / "t.parquet"), DataOptions(labels="code", drop=["mark"]))
    assert found.class_names == table.class_names == ("9", "10", "100")
    assert torch.equal(found.train_labels, table.train_labels)
    with pytest.raises(UserError, match="column 'mark', of labels, holds -1, which is none of its 2 classes"):
        load("hub:user/codes", DataOptions(labels="mark", drop=["code"]))


def test_without_the_package_a_set_of_the_hub_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets; pip install"):
        load("hub:user/digits")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_folder_that_the_package_has_saved_is_read_by_the_same_code(tmp_path, monkeypatch) -> None:
    datasets = importlib.import_module("datasets") if OLDEST else pytest.importorskip("datasets")
    monkeypatch.setattr(stored_rows, "KEPT_BYTES", 0)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["even", "odd"]))
    rows = {"image": [_png(i) for i in range(40)], "label": [i % 2 for i in range(40)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    data = load(f"hub:{tmp_path / 'saved'}", DataOptions(labels="label"))
    assert data.class_names == ("even", "odd")
    assert torch.equal(data.train[:][:, 0, 0, 0] % 2, data.train_labels)
