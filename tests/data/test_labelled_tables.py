"""A column of a table as classes."""

import numpy as np
import pandas as pd
import pytest

from thalweg.core.errors import UserError
from thalweg.data.catalog import load
from thalweg.data.options import DataOptions

RANDOM = np.random.default_rng(0)
KIND = RANDOM.choice(["wren", "owl", "kite"], 60)
FRAME = pd.DataFrame({"wing": RANDOM.normal(size=60), "kind": KIND, "site": RANDOM.choice(["n", "s"], 60)})


def write(frame, folder, suffix="csv"):
    path = folder / f"t.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    return str(path)


def labelled(path, **options):
    return load(path, DataOptions(labels="kind", **options))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_classes_are_numbered_by_their_names_and_no_part_of_a_row(suffix, tmp_path):
    found = labelled(write(FRAME, tmp_path, suffix))
    assert found.class_names == ("kite", "owl", "wren")
    assert (found.layout.names, found.shape) == (["wing", "site"], (3,))
    assert "kind" in found.layout.ignored  # a later table may have it
    for x, labels in ((found.train, found.train_labels), (found.held_out, found.held_out_labels)):
        rows = [int(np.argmin(abs(FRAME.wing.to_numpy() - float(row[0])))) for row in x]
        assert [found.class_names[i] for i in labels] == KIND[rows].tolist()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([2, 0, 1], ("0", "1", "2")), ([10, 9, 100], ("9", "10", "100")), ([True, False], ("False", "True"))],
)
def test_whole_numbers_keep_their_order(values, wanted, tmp_path):
    frame = FRAME.assign(kind=[values[i % len(values)] for i in range(60)])
    found = [labelled(write(frame, tmp_path, suffix)).class_names for suffix in ("csv", "parquet")]
    assert found == [wanted, wanted]


@pytest.mark.parametrize(
    ("change", "options", "part"),
    [
        ({"kind": [*KIND[:-1], None]}, {}, "column 'kind', of labels, is missing in line 61"),
        ({"kind": [*KIND[:-1], "emu"]}, {}, "one row of the class 'emu'"),
        ({"kind": FRAME.wing}, {}, "holds numbers with fractions"),
        ({}, {"drop": ["kind"]}, "must not be left out too"),
        ({}, {"targets": ["kind"]}, "must not be a target too"),
        ({}, {"labels": "knd"}, "did you mean 'kind'"),
    ],
)
def test_what_is_refused(change, options, part, tmp_path):
    path = write(FRAME.assign(**change), tmp_path)
    with pytest.raises(UserError, match=part):
        load(path, DataOptions(**{"labels": "kind", **options}))
