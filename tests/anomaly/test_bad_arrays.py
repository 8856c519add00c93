"""What `EnergyDetector` says of arrays and frames that cannot be used, and that one table in any form is one table."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from joblib import Parallel, delayed
from sklearn.model_selection import GridSearchCV

import thalweg
from thalweg.core.errors import UserError


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(60, 3))


@pytest.fixture(scope="module")
def detector(x):
    return thalweg.EnergyDetector(random_state=0).fit(x)


@pytest.fixture(scope="module")
def frame(normal_rows):
    return thalweg.EnergyDetector(random_state=0).fit(normal_rows())


def with_value(x, value):
    return np.where(np.arange(x.size).reshape(x.shape) == 7, value, x)


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (lambda x: x[:, :2], "expecting 3 features"),
        (lambda x: np.c_[x, x], "expecting 3 features"),
        (lambda x: x[0], "1D array"),
        (lambda x: x[:0], "0 sample"),
        (lambda x: x[None], "dim 3"),
        (lambda x: with_value(x, np.nan), "NaN"),
        (lambda x: with_value(x, np.inf), "infinity"),
        (lambda x: np.char.add(x.astype(str), "a"), "convert string to float|dtype"),
        (lambda x: x + 1j, "Complex"),
    ],
)
def test_arrays_that_cannot_be_scored(bad, part, x, detector):
    with pytest.raises(ValueError, match=part):
        detector.predict(bad(x))


@pytest.mark.parametrize(
    ("bad", "at", "mend"),
    [
        (lambda x: with_value(x, np.nan), "X[2, 1] is missing", "missing='marginalise'"),
        (lambda x: with_value(x, -np.inf), "X[2, 1] is infinite", "mend it"),
        (lambda x: with_value(x.astype(object), "red"), "X[2, 1] holds 'red'", "table with names"),
        (lambda x: x + 1j, "Complex data", "two columns"),
        (lambda x: x[0], "1D array", "reshape(-1, 1)"),
    ],
)
def test_bad_arrays_are_told_in_one_line(bad, at, mend, x, detector):
    """With the place and the remedy, in the fit as in the score."""
    for told in (detector.energy, thalweg.EnergyDetector().fit):
        with pytest.raises(UserError) as caught:
            told(bad(x))
        assert at in str(caught.value)
        assert mend in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_text_that_is_always_the_same_or_missing(normal_rows):
    """Equal energies of the observed part: nothing is divided by their distance (warnings are errors here)."""
    t = normal_rows()[["flow", "heat"]].assign(site=["red", None] * 30)
    detector = thalweg.EnergyDetector(missing="marginalise", random_state=0).fit(t)
    only = t.assign(flow=np.nan, heat=np.nan)
    assert np.isfinite(detector.energy(pd.concat([t, only], ignore_index=True))).all()


@pytest.mark.parametrize("value", [1e30, -1e30, 1.7e308])
def test_huge_values_are_finite_and_strange(value, x, detector):
    odd = with_value(x, value)
    assert np.isfinite(detector.energy(odd)).all()
    assert detector.energy(odd).argmax() == 2
    fitted = thalweg.EnergyDetector(random_state=0).fit(odd)
    assert np.isfinite(fitted.energy(x)).all()
    assert fitted.train_scores_.argmax() == 2


def test_few_and_constant_rows(x):
    with pytest.raises(ValueError, match="minimum of 2"):
        thalweg.EnergyDetector().fit(x[:1])
    assert (thalweg.EnergyDetector().fit(x[:10]).predict(x[:10]) == 1).all()
    constant = thalweg.EnergyDetector(random_state=0).fit(np.ones((40, 2)))
    assert constant.predict([[1.0, 1.0], [1.0, 1.001], [0.0, 1.0]]).tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (lambda t: t.drop(columns="heat"), "lacks column 'heat'"),
        (lambda t: t.assign(age=1), "'age' not among"),
        (lambda t: t.assign(site=1.0), "numbers where categories were"),
        (lambda t: t.assign(heat="hot"), "'heat' holds 'hot' in row 0"),
        (lambda t: t.set_axis(["flow", "flow", "site"], axis=1), "there twice"),
        (lambda t: t.to_numpy(), "table with the columns of the fit by name"),
        (lambda t: t.assign(heat=np.nan), "'heat' is missing"),
        (lambda t: t.assign(site=None), "'site' is missing"),
        (lambda t: t[:0], "must hold 1 row or more"),
    ],
)
def test_frames_that_cannot_be_scored(bad, part, normal_rows, frame):
    with pytest.raises(UserError, match=part):
        frame.energy(bad(normal_rows()))


def test_pandas_polars_and_arrow_are_one_table(normal_rows, frame):
    """Columns by name in any order, categories as texts or typed, single precision for numbers."""
    t = normal_rows(20, seed=1)
    wanted = frame.energy(t)
    kinds = [
        t[["site", "flow", "heat"]],
        t.set_index(np.arange(100, 120)),
        t.astype({"site": "category"}),
        pl.from_pandas(t),
        pl.from_pandas(t).with_columns(pl.col("site").cast(pl.Categorical)),
        pa.Table.from_pandas(t),
    ]
    for same in kinds:
        np.testing.assert_array_equal(frame.energy(same), wanted)
    np.testing.assert_allclose(frame.energy(t.astype({"flow": "f4", "heat": "f4"})), wanted, rtol=1e-4, atol=1e-5)
    fitted = thalweg.EnergyDetector(random_state=0).fit(pl.from_pandas(normal_rows()))
    np.testing.assert_allclose(fitted.energy(t), wanted)
    assert [r.feature for r in fitted.explain(t[:1])] == [r.feature for r in frame.explain(pl.from_pandas(t[:1]))]


def test_a_grid_over_frames_and_processes(normal_rows, frame):
    """Grid search cuts frames and clones; another process gets the same scores."""
    t = pd.concat([normal_rows(40), normal_rows(4).assign(flow=9.0)], ignore_index=True)
    labels = np.repeat([1, -1], [40, 4])
    grid = GridSearchCV(
        thalweg.EnergyDetector(random_state=0), {"contamination": ["auto", 0.2]}, scoring="accuracy", cv=2
    )
    order = np.random.default_rng(0).permutation(len(t))
    assert grid.fit(t.iloc[order], labels[order]).best_score_ > 0.5
    found = Parallel(n_jobs=2, backend="threading")(delayed(frame.p_values)(part) for part in (t[:20], t[20:]))
    np.testing.assert_array_equal(np.concatenate(found), frame.p_values(t))
