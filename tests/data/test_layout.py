"""Tables are matched by the names of their columns; where one side has none the order counts, and the log says so."""

import logging

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.columns.layout import Layout

FRAME = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [10.0, 20.0, 40.0], "c": [True, False, True]})
VALUES = FRAME.to_numpy(float)


@pytest.fixture
def layout():
    return Layout.fit(FRAME, where="fit.csv")


@pytest.mark.parametrize(
    "kind", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas], ids=["pandas", "polars", "arrow"]
)
@pytest.mark.parametrize("order", [[*"abc"], [*"cab"], [*"bca"]])
def test_the_order_of_the_columns_does_not_matter(kind, order, layout, caplog):
    np.testing.assert_array_equal(layout.encode(kind(FRAME[order])), VALUES)
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.rename(columns={"a": "A"}), "lacks column 'a' (column 'A' not known)"),
        (lambda t: t[["a", "b"]], "lacks column 'c'"),
        (lambda t: t.assign(d=1.0), "column 'd' not among"),
        (lambda t: t.set_axis(["a", "b", "b"], axis=1), "column 'b' there twice"),
        (lambda t: t.assign(b=["x", "y", "z"]), "column 'b' holds 'x' in row 0"),
    ],
)
def test_other_columns_are_refused_by_name(change, part, layout):
    with pytest.raises(UserError, match=part.replace("(", r"\(").replace(")", r"\)")) as caught:
        layout.encode(change(FRAME), where="new.csv")
    assert caught.value.argument == "new.csv"
    assert "\n" not in str(caught.value)


def test_columns_that_were_left_out_may_be_there(layout):
    wide = FRAME.assign(id=[7, 8, 9])
    found = Layout.fit(wide[[*"abc"]], where="t", ignored=["id"])
    np.testing.assert_array_equal(found.encode(wide), VALUES)
    np.testing.assert_array_equal(found.encode(FRAME), VALUES)
    np.testing.assert_array_equal(layout.encode(wide, drop=["id"]), VALUES)
    with pytest.raises(UserError, match="the model needs it"):
        layout.encode(FRAME, drop=["a"])


def test_names_on_one_side_only_are_told(layout, caplog):
    """By order: a headless table for a model with names, a table with names for a model without; of numbers enough."""
    bare = FRAME.set_axis([*"012"], axis=1)
    np.testing.assert_array_equal(layout.encode(bare, where="bare.csv", headless=True), VALUES)
    assert "bare.csv: no names" in caplog.text
    with pytest.raises(UserError, match="must have 3 columns, as the model; it has 2"):
        layout.encode(bare[["0", "1"]], headless=True)
    for nameless in (Layout(), Layout.fit(bare, where="t", headless=True)):
        assert nameless.names is None
        caplog.clear()
        np.testing.assert_array_equal(nameless.encode(FRAME[[*"bac"]], where="t.csv"), VALUES[:, [1, 0, 2]])
        assert "taken in this order: b, a, c" in caplog.text
        caplog.clear()
        np.testing.assert_array_equal(nameless.encode(bare, headless=True), VALUES)
        assert not caplog.records


def test_a_model_of_arrays_takes_no_texts():
    with pytest.raises(UserError, match="not numbers in column 'site'") as caught:
        Layout().encode(FRAME.assign(site=["u", "v", "u"]), where="t.csv")
    assert caught.value.argument == "t.csv"


def test_categories_there_and_back():
    frame = pd.DataFrame({"b": [1.0, 2.0, 3.0, 4.0], "site": [*"uvuv"], "a": [True, False, True, True]})
    layout, x = Layout.fit_encode(frame, where="t.csv")
    np.testing.assert_array_equal(x, [[1, 1, 0, 1], [2, 0, 1, 0], [3, 1, 0, 1], [4, 0, 1, 1]])
    assert (layout.categories, layout.owners) == (["site"], ["b", "site", "site", "a"])
    noisy = torch.from_numpy(x) + torch.tensor([0.0, 0.3, -0.2, 0.1])
    pd.testing.assert_frame_equal(pd.DataFrame(layout.decode(noisy)), frame)
    assert layout.decode(noisy[:0]) == {"b": [], "site": [], "a": []}
    assert layout.widened(torch.tensor([True, False, True])).tolist() == [True, False, False, True]
    turned, order = layout.with_last(["b"], "t.csv")
    np.testing.assert_array_equal(turned.encode(frame), x[:, order])
    assert Layout.from_list(layout.to_list()).decode(noisy) == layout.decode(noisy)


@pytest.mark.parametrize(
    ("column", "part"),
    [
        ([f"{i},{i % 10}" for i in range(40)], "a number in another writing"),
        ([f"1,{i:03}.5" if i % 4 else f"{i}.5" for i in range(40)], "a number in another writing"),
        ([f"{1 + i % 28:02}-Jan-24" for i in range(40)], "holds dates or times such as"),
    ],
)
def test_texts_in_doubt_are_no_categories(column, part):
    with pytest.raises(UserError, match=part):
        Layout.fit(pd.DataFrame({"a": np.arange(40) % 7, "b": column}), where="t.csv", parse=True)


def test_columns_that_count_or_tell_the_time_as_for_a_detector(caplog):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.normal(size=40), "n": np.arange(40), "day": 20240101 + np.arange(40) % 28})
    for given in (frame, pl.from_pandas(frame)):
        caplog.clear()
        with pytest.raises(UserError, match=r"column 'day' holds dates .*leave it out.*data.dtype={day: num"):
            Layout.fit(given, where="t.csv")
        found = Layout.fit(given, where="t.csv", dtype={"day": "number"})
        assert (found.names, found.ignored) == (["x", "day"], ("n",))
        assert "t.csv: column 'n' is left out, as it counts the rows, in steps of 1" in caplog.text
    assert Layout.fit(frame, where="t.csv", dtype={"day": "category", "n": "number"}).categories == ["day"]


def test_lost_whole_numbers_are_refused():
    ticks = 1_700_000_000_000_000_000 + np.arange(3)
    for frame in (FRAME.assign(ns=ticks), pa.table({"x": [1.0, 2, 3], "ns": pa.array(ticks)})):
        with pytest.raises(UserError, match="column 'ns' holds numbers near"):
            Layout.fit(frame, where="t.csv")
    with pytest.raises(UserError, match="column 'ns'"):
        Layout.fit(FRAME.assign(ns=ticks.astype(str)), where="t.csv", parse=True)
    Layout.fit(FRAME.assign(ns=ticks[0] + 10**9 * np.array([0, 2, 1])), where="t.csv")  # seconds apart: all there
    Layout.fit(FRAME.assign(ns=ticks[0]), where="t.csv")


def test_columns_that_come_in_float32():
    """Refused where its steps hide their spread; known by the model's order otherwise."""
    far = pa.table({"a": [1.0, 2, 3], "f": pa.array([5932154.0, 5932154.5, 5932155.0], pa.float32())})
    for frame in (far, pl.from_arrow(far), far.to_pandas()):
        with pytest.raises(UserError, match="column 'f' comes in float32"):
            Layout.fit(frame, where="t.parquet")
    near = pa.table({"a": [1.0, 2, 3], "f": pa.array([1.0, 1.5, 2.0], pa.float32())})
    layout = Layout.fit(near, where="t.parquet")
    assert layout.singles(near.select(["f", "a"])) == [False, True]
    Layout.fit(far.set_column(1, "f", pa.array([5932154.0] * 3, pa.float32())), where="t")


def test_the_row_numbers_that_pandas_writes_are_left_out_and_said(caplog):
    frame = pd.DataFrame({"": np.arange(40), "a": np.random.default_rng(0).normal(size=40)})
    found = Layout.fit(frame, where="t.csv")
    assert (found.names, found.ignored) == (["a"], ("",))
    assert "t.csv: column '' is left out, as it is an index without a name" in caplog.text
    np.testing.assert_array_equal(found.encode(frame)[:, 0], frame["a"])
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # names that are no names are matched by order: none is left out
        bare = Layout.fit(frame.set_axis(["0", "1"], axis=1), where="t", headless=True)
    assert bare.columns.names == ["0", "1"]
    assert not caplog.records


def test_what_json_holds_of_it(layout):
    again = Layout.from_list(layout.to_list(), ignored=["id"])
    np.testing.assert_array_equal(again.encode(FRAME[[*"cba"]]), VALUES)
    assert again.ignored == ("id",)
    assert Layout.from_list(None) == Layout()
    for stored in ({}, [1], "abc"):
        with pytest.raises(DamagedFile):
            Layout.from_list(stored)
