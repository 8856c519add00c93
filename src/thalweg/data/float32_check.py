"""Checks that numbers keep their spread on the way to a network in float32.

A column of 5932154.0 ± 0.05 has one value in float32, whose steps there are 0.5. So rows stay in float64 until a fitted
transform has standardised them, and only z = f(x) is rounded. Where a column loses its spread all the same, as in rows
that are float32 or by a transform that keeps the offset, the error names the column.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.data.transform import ROUNDING, Identity, Transform

COARSE = 0.05  # of a column's standard deviation: larger steps hide the column's spread


@dataclass(frozen=True)
class Float32Transform:
    """A fitted transform f between data and a network in float32.

    forward(x) = float32(f(x + shift)),    inverse(z) = f^-1(z) - shift in `dtype`.

    Args:
        inner: f.
        dtype: The type of the data.
        shift: Was taken off the data, (D,); None: nothing.
    """

    inner: Transform
    dtype: torch.dtype = torch.float32
    shift: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Data units to model units, float32."""
        return self.inner.forward(self._shifted(x)).to(torch.float32)

    def inverse(self, z: Tensor) -> Tensor:
        """Model units to data units."""
        if self.shift is not None:
            return (self.inner.inverse(z.double()) - self.shift.to(z.device)).to(self.dtype)
        return self.inner.inverse(z.to(self.dtype))

    def log_abs_det(self, x: Tensor) -> Tensor:
        """log |det df/dx| at each row, (B,) nats, float32."""
        return self.inner.log_abs_det(self._shifted(x)).to(torch.float32)

    def to_dict(self) -> dict[str, Any]:
        """The spec of the transform within."""
        return self.inner.to_dict()

    def _shifted(self, x: Tensor) -> Tensor:
        if self.shift is None:
            return x
        if x.device not in self._shifts:
            self._shifts[x.device] = self.shift.to(x.device)
        return x.double() + self._shifts[x.device]

    @cached_property
    def _shifts(self) -> dict[torch.device, Tensor]:
        return {}


def check_fitted(transform: Transform, x: Tensor, names: Sequence[str] | None, where: str) -> None:
    """UserError, by column, where rows x (N, D) lose their spread by a fitted transform to float32.

    The steps of x's own type, transformed, and those of float32 around z are compared with the deviation of z.
    """
    z = transform.forward(x.double())
    steps = _steps(transform, x, z) + spacing(z.to(torch.float32))
    size = x.abs().amax(0).double()
    constant = (x.amax(0) - x.amin(0)).double() <= ROUNDING * size
    lost = (steps.median(0).values > COARSE * z.std(0)) & ~constant
    if bool(lost.any()):
        i = int(lost.nonzero()[0])
        kind = str(x.dtype).removeprefix("torch.")
        raise UserError(
            f"{_column(i, names)} spreads by {float(x[:, i].double().std()):.3g} around {float(x[0, i]):.9g}, "
            f"which is lost in {kind if kind != 'float64' else 'the float32 of the network'}",
            argument=where,
            hint="subtract an offset from it, as its mean, in float64",
        )


def check_scored(
    transform: Transform, x: Tensor, names: Sequence[str] | None, where: str, *, single: Sequence[bool] | None = None
) -> None:
    """UserError, by column, where rows x (B, D) in float32 are too coarse for a model of float64 rows.

    `single`: which columns of float64 rows came in float32.
    """
    z = transform.forward(x.double())
    steps = _steps(transform, x, z)
    if single is not None:
        steps = torch.where(torch.tensor(single), _steps(transform, x.to(torch.float32), z), steps)
    coarse = (steps > COARSE * z.abs().clamp(min=1)).any(0)
    if bool(coarse.any()):
        i = int(coarse.nonzero()[0])
        what = f"{_column(i, names)} comes in float32, whose steps around {float(x[0, i]):.9g} hide its spread"
        raise UserError(what, argument=where, hint="give float64")


def as_float32(x: Tensor, names: Sequence[str] | None, where: str) -> Tensor:
    """Rows (N, D) in float32; UserError, by column, where that would lose the spread of one."""
    if x.dtype == torch.float64 and x.ndim == 2 and len(x) > 1:
        check_fitted(Identity(), x, names, where)
    return x.to(torch.float32)


def check_whole_numbers(x: np.ndarray, source: Iterable[Any], what: str, where: str) -> None:
    """UserError where whole numbers beyond 2^53 that differ have become one float64 or few: `x` (N,), of `source`."""
    x = x[np.isfinite(x)]
    size = np.abs(x).max(initial=0)
    if size < 2**53 or np.ptp(x) > 1024 * np.spacing(size):
        return
    if len({*source} - {None}) > 1:
        steps = f"{what} holds numbers near {size:.3g}, where float64 has steps of {np.spacing(size):g}"
        raise UserError(f"{steps}, which hide their spread", argument=where, hint="subtract an offset from them first")


def check_single(x: np.ndarray, what: str, where: str) -> None:
    """UserError where numbers x (N,) that came in float32 have steps which hide their spread."""
    x = x[np.isfinite(x)]
    if not len(x) or np.ptp(x) == 0:
        return
    middle = np.median(np.abs(x))
    if np.spacing(np.float32(middle)) > COARSE * x.std():
        steps = f"{what} comes in float32, whose steps around {middle:.9g} hide its spread"
        raise UserError(steps, argument=where, hint="store it in float64, or subtract an offset first")


def _steps(transform: Transform, x: Tensor, z: Tensor) -> Tensor:
    """From each number to the next one of its type, in the transform's units."""
    return (transform.forward(x.double() + spacing(x)) - z).abs()


def spacing(x: Tensor) -> Tensor:
    """From each number to the next larger one of its type, float64; 0 for whole numbers."""
    if not x.is_floating_point():
        return torch.zeros(x.shape, dtype=torch.float64)
    return (torch.nextafter(x.abs(), torch.full_like(x, torch.inf)) - x.abs()).double()


def _column(i: int, names: Sequence[str] | None) -> str:
    return f"column {names[i]!r}" if names else f"column {i + 1}"
