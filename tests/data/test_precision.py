"""Columns far from zero keep their spread: float64 until they are standardised, or refused by name."""

import numpy as np
import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.data.float32_check import Float32Transform, as_float32, check_fitted, check_scored
from thalweg.data.transform import Identity, Scale, Standardize

OFFSETS = {"northing": (5932154.0, 0.05), "epoch": (1.7e9, 30.0), "plain": (-3.0, 2.0)}
NAMES = [*OFFSETS]


def rows(n=500):
    z = np.random.default_rng(0).normal(size=(n, len(OFFSETS)))
    return torch.from_numpy(z * [s for _, s in OFFSETS.values()] + [m for m, _ in OFFSETS.values()])


def test_deviations_survive_standardising():
    """In deviations to 1e-6; the mutant that rounds the rows first is off by more than one."""
    x = rows()
    fitted = Standardize().fit(x)
    exact = (x - x.mean(0)) / x.std(0, correction=0)
    z = Float32Transform(fitted, torch.float64).forward(x)
    assert z.dtype == torch.float32
    assert float((z - exact).abs().max()) < 1e-6
    assert float((fitted.forward(x.float().double()) - exact)[:, 0].abs().max()) > 1


def test_samples_come_back_in_the_units_of_the_data():
    x = rows()
    transform = Float32Transform(Standardize().fit(x), torch.float64)
    back = transform.inverse(transform.forward(x))
    assert back.dtype == torch.float64
    assert float(((back - x) / x.std(0)).abs().max()) < 1e-5
    assert transform.log_abs_det(x).dtype == torch.float32
    assert float(transform.log_abs_det(x)[0]) == pytest.approx(-float(x.std(0, correction=0).log().sum()), rel=1e-5)


def test_of_float32_rows_it_is_the_transform_within():
    x = rows()[:, 2:].float()
    inner = Standardize().fit(x)
    outer = Float32Transform(inner)
    assert torch.equal(outer.forward(x), inner.forward(x))
    assert torch.equal(outer.inverse(x), inner.inverse(x))
    assert torch.equal(outer.log_abs_det(x), inner.log_abs_det(x))


def test_a_shift_moves_the_units_of_the_data():
    x = rows()
    inner = Standardize().fit(x)
    moved = Float32Transform(inner, torch.float32, x[0])
    near = (x - x[0]).float()
    assert float((moved.forward(near) - inner.forward(x)).abs().max()) < 1e-5
    assert float(((moved.inverse(moved.forward(near)) - near) / x.std(0)).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("transform", "dtype", "column"),
    [
        (Standardize(), torch.float64, None),
        (Standardize(), torch.float32, "epoch"),  # lost before it came; of northing one number is left
        (Identity(), torch.float64, "northing"),  # lost on its way to the network
        (Scale(), torch.float64, "northing"),
    ],
)
def test_a_column_whose_spread_is_lost_is_refused_by_name(transform, dtype, column):
    x = rows().to(dtype)
    fitted = transform.fit(x)
    if column is None:
        check_fitted(fitted, x, NAMES, "t.csv")
        return
    with pytest.raises(UserError, match=f"column '{column}' spreads by") as caught:
        check_fitted(fitted, x, NAMES, "t.csv")
    assert caught.value.argument == "t.csv"
    with pytest.raises(UserError, match=f"column {NAMES.index(column) + 1} spreads"):
        check_fitted(fitted, x, None, "t.npy")
    check_fitted(transform.fit(x[:, 2:]), x[:, 2:], None, "t")


def test_constant_columns_and_far_rows_are_not_refused():
    """Nor is 0.1 + 0.2 beside 0.3, which is rounding and gets the scale of a constant."""
    x = rows()
    x[:, 0] = 5932154.0
    x[:, 1] = torch.where(torch.arange(len(x)) % 2 == 0, 0.3, 0.1 + 0.2)
    x[0, 2] = 1e30
    fitted = Standardize().fit(x)
    assert fitted.scale[:2] == [1.0, 1.0]
    check_fitted(fitted, x, NAMES, "x")
    check_fitted(Standardize().fit(x.float()), x.float(), NAMES, "x")


def test_rows_too_coarse_for_a_model_are_refused():
    x = rows()
    fitted = Standardize().fit(x)
    with pytest.raises(UserError, match="column 'northing' comes in float32"):
        check_scored(fitted, x.float(), NAMES, "x")
    plain = x[:, 2:].float()
    plain[0] = 1e30  # where steps are wide, but the row is far out anyway
    check_scored(Standardize().fit(rows()[:, 2:]), plain, None, "x")


def test_rounding_to_float32_where_a_network_has_no_transform():
    x = rows()
    with pytest.raises(UserError, match="column 'northing'"):
        as_float32(x, NAMES, "real.csv")
    assert torch.equal(as_float32(x[:, 2:], None, "real.csv"), x[:, 2:].float())
