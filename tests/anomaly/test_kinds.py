"""Values of odd kinds in memory: refused in one line that names the column and the remedy, or read one by one."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

import thalweg
from thalweg.core.errors import UserError

ROWS = 24
DAY = datetime.date(2020, 1, 1)


def table(values):
    return pd.DataFrame({"a": np.random.default_rng(0).normal(size=ROWS), "odd": values})


def objects(value):
    return pd.Series([value] * ROWS, dtype=object)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (objects(DAY), "age"),
        (objects(datetime.time(12, 5)), "age"),
        (objects(pd.Timestamp(DAY)), "age"),
        (objects([1, 2]), "spread"),
        (objects({1}), "spread"),
        (objects({"k": 1}), "spread"),
        (objects(np.zeros(2)), "spread"),
        (objects(1j), "real and imaginary"),
        (objects(np.complex128(1j)), "real and imaginary"),
        (objects(b"x"), "texts"),
        (objects(object()), "turn it into numbers or texts"),
        (pd.period_range("2020", periods=ROWS, freq="D"), "numbers"),
        (pd.interval_range(0, ROWS), "numbers"),
        (np.arange(ROWS) + 1j, "numbers"),
        (pd.to_timedelta(range(ROWS)), "numbers"),
    ],
)
def test_odd_kinds_are_refused_in_one_line(values, remedy):
    with pytest.raises(UserError, match="column 'odd' holds") as caught:
        thalweg.EnergyDetector().fit(table(values))
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_odd_value_among_texts_is_refused():
    with pytest.raises(UserError, match="kind date"):
        thalweg.EnergyDetector().fit(table(pd.Series(["x", "y"] * 11 + [DAY, "x"], dtype=object)))


@pytest.mark.parametrize("dtype", ["datetime64[D]", "timedelta64[s]"])
def test_arrays_of_dates_are_refused(dtype):
    x = np.arange(2 * ROWS).reshape(ROWS, 2).astype(dtype)
    for same in (x, pd.DataFrame(x.astype(dtype.replace("[D]", "[s]")))):
        with pytest.raises(UserError, match="dates"):
            thalweg.EnergyDetector().fit(same)


def test_a_lazy_frame_is_told_to_be_collected():
    with pytest.raises(UserError, match="collect"):
        thalweg.EnergyDetector().fit(pl.LazyFrame({"a": [1.0, 2.0]}))


def test_objects_that_are_numbers_are_numbers():
    """Decimals, truth values, whole numbers; a missing one as in any column."""
    given = [Decimal("1.5"), True, 2, np.float32(0.5), pd.NA, None] * 4
    plain = [1.5, 1.0, 2.0, 0.5, np.nan, np.nan] * 4
    first, second = (
        thalweg.EnergyDetector(missing="marginalise", random_state=0).fit(table(v)).train_scores_
        for v in (pd.Series(given, dtype=object), plain)
    )
    np.testing.assert_array_equal(first, second)


def test_a_row_of_a_mixed_column_does_not_depend_on_the_batch():
    """1 and "1" are one category; any rows may be scored alone."""
    t = table(pd.Series([1, "1", "x"] * 8, dtype=object))
    detector = thalweg.EnergyDetector(random_state=0).fit(t)
    whole = detector.energy(t)
    np.testing.assert_allclose([detector.energy(t[i : i + 1])[0] for i in range(ROWS)], whole)
    np.testing.assert_allclose(detector.energy(t[::3]), whole[::3])
    seldom = table(pd.Series(["x", "y"] * 11 + [7, "z"], dtype=object))
    detector = thalweg.EnergyDetector(random_state=0).fit(seldom)
    np.testing.assert_allclose(detector.energy(seldom[22:23]), detector.energy(seldom)[22:23])
