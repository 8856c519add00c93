"""The package `datasets`, where it is installed: what a set of the Hub gives, read as `data.catalog` reads it."""

import importlib
import io
import os

import numpy as np
import pytest
from PIL import Image

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
