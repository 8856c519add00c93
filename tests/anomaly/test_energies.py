"""The energy behind the detector: what it promises on any table, and that its noise is chosen by likelihood."""

import numpy as np
import pytest
import torch

from thalweg.apps.anomaly.tabular.tabular_energy import TabularEnergy
from thalweg.energy.density import kernel_sums
from thalweg.energy.density.kde import KernelDensityEnergy, leave_one_out, loo_bandwidth


def table(n=200, d=4, seed=0):
    """A correlated, skewed table with a constant and a binary column."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, d)) @ r.normal(size=(d, d))
    x[:, 0] = np.exp(x[:, 0])
    return np.column_stack([x, np.full(n, 3.0), r.integers(0, 2, n)])


@pytest.fixture(scope="module")
def fitted():
    return TabularEnergy().fit(table())


@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e-100, 1e-13, 1e-12, 1e12, 1e100, 1e300, [1, 1e300, 1e-300, 1e-13]])
def test_energies_do_not_depend_on_units(scale):
    """Of whole rows, of observed parts and of features alone; a table whose every column has a spread."""
    r = np.random.default_rng(0)
    rows, x, unit = r.normal(size=(120, 4)), np.r_[r.normal(size=(20, 4)), [[0, 0, 0, 9]]], np.array(scale)
    wanted, found = TabularEnergy().fit(rows), TabularEnergy().fit(rows * unit)
    seen = np.arange(84).reshape(21, 4) % 5 > 0
    np.testing.assert_allclose(found.energy(x * unit), wanted.energy(x), atol=1e-9)
    np.testing.assert_allclose(found.calibration_energies_, wanted.calibration_energies_, atol=1e-9)
    np.testing.assert_allclose(found.train_outlier_scores_, wanted.train_outlier_scores_, atol=1e-9)
    np.testing.assert_allclose(found.shares(x * unit), wanted.shares(x), atol=1e-9)
    np.testing.assert_allclose(found.marginal(x * unit, seen), wanted.marginal(x, seen), atol=1e-9)
    np.testing.assert_array_equal(found.repair(x * unit), wanted.repair(x) * unit)
    assert found.energy(x * unit).argmax() == 20


@pytest.mark.parametrize("value", [0.0, 1e-12, 0.3, 1.0, 1e6, 1e300])
def test_any_other_value_in_a_constant_column_is_strange(value):
    rows = np.c_[np.random.default_rng(0).normal(size=(60, 1)), np.full(60, value)]
    u = TabularEnergy().fit(rows).energy(np.array([[0.0, value], [0.0, value + max(1.0, value)], [0.0, value / 2 - 1]]))
    assert (u[1:] > u[0] + 1).all()


@pytest.mark.parametrize("n", [1, 2, 3, 6, 10, 60])
def test_few_rows_and_huge_values_are_finite(n):
    x = table()[:n]
    model = TabularEnergy().fit(x)
    u = model.energy(np.concatenate([x[:2], np.full((1, 6), 1e30), np.full((1, 6), -1.7e308)]))
    for values in (u, model.calibration_energies_, model.train_outlier_scores_):
        assert np.isfinite(values).all()
    assert u[-2] > u[0]


def test_a_row_does_not_depend_on_the_others(fitted):
    x = table(seed=1)
    alone = np.array([fitted.energy(row[None])[0] for row in x[:20]])
    np.testing.assert_allclose(fitted.energy(x)[:20], alone, rtol=1e-7, atol=1e-9)


def test_a_stored_state_gives_the_same_energies(fitted):
    x = table(seed=1)
    np.testing.assert_array_equal(TabularEnergy.from_state(fitted.state()).energy(x), fitted.energy(x))


def test_a_feature_that_is_off_has_the_share_and_is_repaired(fitted):
    x = table(seed=1)[:1].copy()
    x[0, 2] += 50 * table()[:, 2].std()
    assert fitted.shares(x).argmax() == 2
    assert fitted.energy(fitted.repair(x)) < fitted.energy(x)


def test_what_is_not_observed_does_not_count(fitted):
    x, seen = table(seed=1)[:5], np.ones((5, 6), dtype=bool)
    np.testing.assert_array_equal(fitted.marginal(x, seen), fitted.energy(x))
    seen[:, 2] = False
    other = x.copy()
    other[:, 2] = 1e9
    np.testing.assert_array_equal(fitted.marginal(x, seen), fitted.marginal(other, seen))
    assert (fitted.marginal(x, np.zeros_like(seen)) == 0).all()


def test_left_out_energies_have_the_law_of_new_rows():
    """Mean energies against new rows, 4 sigma; the mutant, energies of the stored rows, is far too low."""
    x = table(1600)
    model = TabularEnergy().fit(x[:800])
    new, own = model.energy(x[800:]), model.energy(x[:800])
    bar = 4 * np.hypot(model.calibration_energies_.std() / 800**0.5, new.std() / 800**0.5)
    assert abs(model.calibration_energies_.mean() - new.mean()) < bar
    assert new.mean() - own.mean() > bar


def test_rows_beyond_the_limit_are_new_to_the_energy():
    x = table(300)
    model = TabularEnergy(num_stored=100).fit(x)
    assert model.rows_.shape == (100, 6)
    kept = (x[:, None] == model.rows_).all(2).any(1)
    np.testing.assert_allclose(model.calibration_energies_[~kept], model.energy(x[~kept]), rtol=1e-9)


def test_leave_one_out_leaves_exactly_one_out():
    rows = torch.tensor(table(150))
    u = leave_one_out(rows, [0.3])[0]
    for i in (0, 70, 149):
        others = torch.cat([rows[:i], rows[i + 1 :]])
        torch.testing.assert_close(u[i], KernelDensityEnergy(others, t=0.3)(rows[i : i + 1])[0])


def test_the_likeliest_noise_beats_a_quarter_and_four_times_on_new_rows():
    """Copies in the table are no reason for t -> 0, which the mutant without the rule on copies would choose."""
    r = np.random.default_rng(0)
    rows = torch.tensor(np.repeat(r.normal(size=(300, 2)), 2, axis=0))
    new, t = torch.tensor(r.normal(size=(4000, 2))), loo_bandwidth(rows)
    u = [float(KernelDensityEnergy(rows, t=f * t)(new).mean()) for f in (0.25, 1.0, 4.0)]
    assert u[1] < min(u[0], u[2])


def test_the_density_is_normalised():
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = (-KernelDensityEnergy.example()(grid)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("x", [np.zeros((0, 2)), np.zeros(3), np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]])])
def test_what_is_no_table_is_refused(x):
    with pytest.raises(ValueError, match="finite"):
        TabularEnergy().fit(x)


def test_a_rows_energy_does_not_depend_on_its_companions(monkeypatch):
    """Columns of many decades, whose p-values tell energies 1e-10 apart; without rows that fill products up, the
    mutant, some differ by a hundredth.
    """
    r = np.random.default_rng(0)
    rows, x = (np.exp(10 * r.normal(size=(m, 6))) * np.sign(r.normal(size=(m, 6))) for m in (900, 60))
    energy = TabularEnergy().fit(rows, calibrates=False)
    wanted = energy.energy(x)

    def alone(size):
        return np.concatenate([energy.energy(x[i : i + size]) for i in range(0, len(x), size)])

    for size in (1, 3):
        np.testing.assert_allclose(alone(size), wanted, rtol=1e-5)
    monkeypatch.setattr(kernel_sums, "TOGETHER", 1)
    assert np.abs(alone(1) - wanted).max() > 1e-3
