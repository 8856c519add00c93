import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thalweg.core import config
from thalweg.core.errors import UserError
from thalweg.data.transform import Composed, Identity, Scale, Standardize, Transform

KINDS = [
    Identity(),
    Standardize(),
    Scale(),
    Scale(shift=0.5, scale=-0.25),
    Composed(parts=[Scale(), Standardize(), Identity()]),
    Composed(),
]


def rows(shape: tuple[int, ...], seed: int = 0, n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(n, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("transform", KINDS, ids=repr)
@given(shape=st.lists(st.integers(1, 3), max_size=3).map(tuple), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_the_inverse_undoes_it_and_the_volume_is_the_jacobians(
    transform: Transform, shape: tuple[int, ...], seed: int
) -> None:
    x = rows(shape, seed)
    fitted = transform.fit(x)
    torch.testing.assert_close(fitted.inverse(fitted.forward(x)), x)
    got = fitted.log_abs_det(x[:2])
    assert got.shape == (2,)
    size = math.prod(shape)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda row: fitted.forward(row[None])[0], x[i])
        expected = jacobian.reshape(size, size).det().abs().log()
        torch.testing.assert_close(got[i], expected)


@pytest.mark.parametrize("transform", KINDS, ids=repr)
def test_its_spec_survives_json_and_builds_the_same_map(transform: Transform) -> None:
    x = rows((2, 3))
    fitted = transform.fit(x)
    again = config.build(json.loads(json.dumps(fitted.to_dict())))
    assert torch.equal(again.forward(x), fitted.forward(x))
    assert again.to_dict() == fitted.to_dict()


def test_fit_is_pure_and_keeps_what_was_given() -> None:
    x = rows((3,))
    unfitted = Standardize()
    fitted = unfitted.fit(x)
    assert unfitted.mean is None
    assert fitted.fit(x + 5) == fitted
    torch.testing.assert_close(fitted.forward(x).mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(fitted.forward(x).var(0, correction=0), torch.ones(3, dtype=torch.float64))


def test_a_constant_column_keeps_its_unit() -> None:
    x = rows((2,)).float()
    x[:, 1] = 0.1
    fitted = Standardize().fit(x)
    assert fitted.scale is not None
    assert fitted.scale[1] == 1.0
    assert float(fitted.forward(x)[:, 1].abs().max()) < 1e-6
    assert Scale().fit(torch.ones(4, 2)).scale == 1.0


def test_pixels_are_taken_as_bytes_or_floats_alike() -> None:
    pixels = torch.randint(0, 256, (5000, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for transform in (Standardize(), Scale(), Identity(), Composed(parts=[Scale()])):
        a, b = transform.fit(pixels), transform.fit(pixels.float() / 255)
        torch.testing.assert_close(a.forward(pixels), b.forward(pixels.float() / 255))
        assert a.log_abs_det(pixels).dtype == torch.float32


@pytest.mark.parametrize("transform", [Standardize(), Scale(), Composed(parts=[Scale()])])
def test_an_unfitted_one_says_so(transform: Transform) -> None:
    for method in (transform.forward, transform.inverse, transform.log_abs_det):
        with pytest.raises(UserError, match="must be fitted"):
            method(torch.zeros(2, 3))


def test_other_rows_than_fitted_are_refused() -> None:
    with pytest.raises(UserError, match="as in the fit"):
        Standardize().fit(rows((1,))).forward(rows((3,)))


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="zero"):
        Scale(shift=0.0, scale=0.0).forward(torch.zeros(1, 1))
    with pytest.raises(UserError, match="zero"):
        Standardize(mean=[0.0, 0.0], scale=[1.0, 0.0]).forward(torch.zeros(1, 2))
