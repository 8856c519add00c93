"""What makes the energy of tables fast changes no answer: places, batches, equal rows, far numbers, older states."""

from pathlib import Path

import numpy as np
import pytest

from thalweg.apps.anomaly import bucket_search
from thalweg.apps.anomaly.bucket_search import BucketSearch
from thalweg.apps.anomaly.tabular.mixtures_and_histograms import NEAR, Mixture
from thalweg.apps.anomaly.tabular.scalings import _arcsinh
from thalweg.apps.anomaly.tabular.tabular_energy import SINGLE, TabularEnergy


def table(n, seed):
    """Three columns of two hidden numbers, in hundredths, so that some rows are equal."""
    r = np.random.default_rng(seed)
    x = np.sin(r.normal(size=(n, 2)) @ np.random.default_rng(9).normal(size=(2, 3))) + 0.2 * r.normal(size=(n, 3))
    return np.round(x, 2)


@pytest.fixture(scope="module")
def fitted():
    """Enough rows for lists of candidates."""
    rows = table(2500, 0)
    rows[:50] = rows[50:100]
    energy = TabularEnergy().fit(rows, calibrates=False)
    assert any(kernel.search.num_candidates for kernel in energy.kernels_.values())
    return energy


def test_a_state_of_before_scores_as_it_did():
    """A state that was written when lists were fewer and mixtures in float64, within its loss of .01 nats a row."""
    with np.load(Path(__file__).parent / "table_state.npz") as stored:
        state = dict(stored)
    x, wanted = state.pop("new_rows"), state.pop("new_energies")
    energy = TabularEnergy.from_state(state)
    assert any(kernel.search.num_candidates for kernel in energy.kernels_.values())
    found = energy.energy(x)
    np.testing.assert_allclose(found, wanted, atol=0.01, rtol=1e-4)
    assert np.abs(found - wanted)[:300].mean() < 1e-3
    mutant = TabularEnergy.from_state(state | {"noise.arcsinh": state["noise.arcsinh"] * 1.05})
    assert np.abs(mutant.energy(x) - wanted)[:300].mean() > 1e-3


def test_energies_do_not_depend_on_the_batch(fitted):
    x = np.concatenate([table(200, 1), 4 * table(10, 2)])
    whole = fitted.energy(x)
    for size in (1, 2, 3, 7, 50):
        parts = [fitted.energy(x[i : i + size]) for i in range(0, len(x), size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)


def test_equal_rows_tie_wherever_they_stand(fitted):
    x = table(300, 1)
    x[[0, 17, 150, 299]] = x[5]
    u = fitted.energy(x)
    np.testing.assert_array_equal(u[[0, 17, 150, 299]], u[5])


def test_hostile_numbers_have_finite_energies_above_all_others(fitted):
    x = np.array([[1e300, 0, 0], [-1e300, 1e300, 0], [1.7e308] * 3, [-1.7e308] * 3, [5e-324, 1e-300, 0]])
    u = fitted.energy(x)
    assert np.isfinite(u).all()
    assert (u[:4] > fitted.energy(table(200, 1)).max()).all()


def test_a_large_offset_loses_no_digits(fitted):
    """Rows beside 2^33, where float32 knows no hundredths: exact in float64, and so are their differences."""
    rows, x, offset = table(2500, 0) * 128 // 1 / 128, table(200, 1) * 128 // 1 / 128, 2.0**33
    near, far = (TabularEnergy().fit(rows + o, calibrates=False).energy(x + o) for o in (0.0, offset))
    np.testing.assert_allclose(far, near, atol=0.01)
    assert np.abs(far - near).mean() < 1e-3


LAWS = {
    "normal": lambda r: r.normal(size=3000),
    "long tails": lambda r: r.standard_cauchy(3000),
    "skewed": lambda r: np.exp(3 * r.normal(size=3000)),
    "whole numbers": lambda r: r.integers(0, 200, 3000).astype(float),
    "offset": lambda r: 1e12 + r.normal(size=3000),
    "huge": lambda r: 1e308 * r.uniform(-1, 1, size=300),
    "tiny": lambda r: 1e-310 * r.normal(size=300),
    "two clumps": lambda r: np.concatenate([r.normal(size=1500), 1e9 + 1e-3 * r.normal(size=1500)]),
}


@pytest.mark.parametrize("law", LAWS)
def test_places_are_those_of_halving(law):
    r = np.random.default_rng(0)
    values = LAWS[law](r)
    known = np.append(np.unique(values), np.inf)
    x = np.concatenate([values, 0.999 * values, r.permutation(values) / 3, [1e300, -1e300, 0.0, -0.0, 1.7e308]])
    np.testing.assert_array_equal(BucketSearch(known)(x), np.searchsorted(known, x))


def test_places_that_two_steps_do_not_find_are_searched(monkeypatch):
    """The mutant that stops there is wrong."""
    known = np.append(np.sort(LAWS["skewed"](np.random.default_rng(0))), np.inf)
    search, x = BucketSearch(known), known[:-1] * 1.001
    wanted = np.searchsorted(known, x)
    np.testing.assert_array_equal(search(x), wanted)
    monkeypatch.setattr(bucket_search.np, "flatnonzero", lambda _: np.arange(0))
    assert (search(x) != wanted).any()


def test_arcsinh_is_that_of_numpy():
    z = np.concatenate([[0.0, -0.0, 1e-300, 1e-9, 1e160, np.inf], np.geomspace(1e-6, 1e150, 500)])
    z = np.stack([z, -z], axis=1)
    np.testing.assert_allclose(_arcsinh(z), np.arcsinh(z), rtol=1e-14, atol=3e-16)


def test_mixtures_in_float32_lose_no_more_than_the_room_for_ties(monkeypatch):
    """Far means keep float64; the mutant that has them in float32 loses more."""
    y = np.random.default_rng(0).normal(size=(2000, 6))
    mixture, far = Mixture.fit(y, 0, 4), Mixture.fit(y + 1000, 0, 4)
    exact, found = mixture(y), mixture(y, single=True)
    assert 0 < np.abs(found - exact).max() < SINGLE
    for size in (1, 2, 3, 5):
        np.testing.assert_array_equal(mixture(y[:size], single=True), found[:size])
    np.testing.assert_array_equal(far(y + 1000, single=True), far(y + 1000))
    monkeypatch.setattr("thalweg.apps.anomaly.tabular.mixtures_and_histograms.NEAR", 1e9 * NEAR)
    mutant = Mixture(log_weights=far.log_weights, means=far.means, factors=far.factors)
    assert np.abs(mutant(y + 1000, single=True) - exact).max() > 10 * SINGLE
