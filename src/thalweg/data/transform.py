"""Fitted invertible maps z = f(x) from data units to model units.

Data units are the user's own: pixels uint8 or float in [0, 1], table columns as they are. An energy is trained in model
units. log p(x) = log p(z) + log |det df/dx|, so likelihoods are in data units. A map is a frozen dataclass of its
fitted values; `fit` sets those that are None.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from thalweg.core import check
from thalweg.core.config import type_name
from thalweg.core.errors import UserError, one_line
from thalweg.data.validate import as_float

ROUNDING = 1e-14  # of a column's size: a column that varies by less is constant but for rounding


@runtime_checkable
class Transform(Protocol):
    """An invertible map of rows (B, *)."""

    def fit(self, x: Tensor) -> Self:
        """A fitted copy; x (N, *) is training data in data units, uint8 or float."""
        ...

    def forward(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Data units to model units."""
        ...

    def inverse(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Model units to data units."""
        ...

    def log_abs_det(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """log |det d forward / dx| at each row, in nats."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The spec that builds it: `type` and the constructor's keyword arguments, as JSON holds them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """z = x."""

    def fit(self, x: Tensor) -> Self:
        """Itself: nothing is fitted."""
        return self

    def forward(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """x."""
        return as_float(x)

    def inverse(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """z."""
        return z

    def log_abs_det(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Zeros (B,)."""
        return as_float(x[:1]).new_zeros(len(x))

    def to_dict(self) -> dict[str, Any]:
        """The spec."""
        return _spec(self)


@dataclass(frozen=True, kw_only=True)
class Standardize:
    """z = (x - mean) / scale for each feature: mean 0 and variance 1 over the training data.

    A column that is constant in training, to the rounding of float64, gets scale 1. float64 rows are standardised in
    float64, so that a column far from zero keeps its spread.

    Args:
        mean: The means, (nested) lists in the shape of one row; None: fitted.
        scale: The standard deviations, in the same shape; None: fitted.
    """

    mean: Sequence[Any] | None = None
    scale: Sequence[Any] | None = None

    def fit(self, x: Tensor) -> Self:
        """A copy with mean and standard deviation of x (N, *), taken in float64."""
        mean = _average(x, lambda rows: rows)
        scale = _average(x, lambda rows: (rows - mean).square()).sqrt()
        low, high = (as_float(edge).double() for edge in (x.amin(0), x.amax(0)))
        scale = scale.where(high - low > ROUNDING * torch.maximum(low.abs(), high.abs()), 1.0)
        return replace(
            self,
            mean=mean.tolist() if self.mean is None else self.mean,
            scale=scale.tolist() if self.scale is None else self.scale,
        )

    def forward(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """(x - mean) / scale."""
        x = as_float(x)
        mean, scale = self._constants(x)
        return (x - mean) / scale

    def inverse(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Mean + scale z."""
        mean, scale = self._constants(z)
        return mean + scale * z

    def log_abs_det(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """-sum log scale, the same for each row."""
        _, scale = self._constants(x := as_float(x))
        return -scale.abs().log().sum().expand(len(x))

    def to_dict(self) -> dict[str, Any]:
        """The spec."""
        return _spec(self, mean=self.mean, scale=self.scale)

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.scale is None:
            raise _not_fitted(self)
        try:
            mean, scale = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.scale))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"must be lists of numbers ({one_line(error)})", argument="mean and scale") from error
        if mean.shape != scale.shape or bool((scale == 0).any()):
            raise UserError("must have the shape of mean, and no zero", argument="scale", value=self.scale)
        return mean, scale

    def _constants(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = self._tensors
        if x.shape[1:] != mean.shape:
            condition = f"must have rows of the shape {tuple(mean.shape)}, as in the fit; they are {tuple(x.shape[1:])}"
            raise UserError(condition, argument="x")
        key = (x.dtype, x.device)
        if key not in self._copies:
            self._copies[key] = (mean.to(x), scale.to(x))
        return self._copies[key]

    @cached_property
    def _copies(self) -> dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]]:
        """Mean and scale by type and device: copied once, as the host waits for a device that gets a copy."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """z = (x - shift) / scale with two numbers for all features, as for images.

    Args:
        shift: The mean of all values; None: fitted.
        scale: Their standard deviation; None: fitted.
    """

    shift: float | None = None
    scale: float | None = None

    def fit(self, x: Tensor) -> Self:
        """A copy with mean and standard deviation over all values of x (N, *); scale 1 if x is constant."""
        shift = _average(x, lambda rows: rows).mean()
        scale = float(_average(x, lambda rows: (rows - shift).square()).mean().sqrt()) if x.amax() > x.amin() else 1.0
        return replace(
            self,
            shift=float(shift) if self.shift is None else self.shift,
            scale=scale if self.scale is None else self.scale,
        )

    def forward(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """(x - shift) / scale."""
        shift, scale = self._constants()
        return (as_float(x) - shift) / scale

    def inverse(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Shift + scale z."""
        shift, scale = self._constants()
        return shift + scale * z

    def log_abs_det(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """-D log |scale|, the same for each row of D numbers."""
        _, scale = self._constants()
        x = as_float(x)
        return x.new_full((len(x),), -math.prod(x.shape[1:]) * math.log(abs(scale)))

    def to_dict(self) -> dict[str, Any]:
        """The spec."""
        return _spec(self, shift=self.shift, scale=self.scale)

    def _constants(self) -> tuple[float, float]:
        if self.shift is None or self.scale is None:
            raise _not_fitted(self)
        if self.scale == 0:
            raise UserError("must not be zero", argument="scale", value=self.scale)
        return self.shift, self.scale


@dataclass(frozen=True, kw_only=True)
class Binarize:
    """z = 1 where x > threshold, else 0: for energies of binary states.

    Not invertible: what is left of a row is its binary form, whose probability p(z) takes the place of a density. So
    `inverse` is z itself and `log_abs_det` zero.

    Args:
        threshold: In data units; a pixel's range is [0, 1].
    """

    threshold: float = 0.5

    def __post_init__(self):
        check.finite(threshold=self.threshold)

    def fit(self, x: Tensor) -> Self:
        """Itself: nothing is fitted."""
        return self

    def forward(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """1 where x is above the threshold, else 0, in the type of x."""
        x = as_float(x)
        return (x > self.threshold).to(x.dtype)

    def inverse(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """z."""
        return z

    def log_abs_det(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Zeros (B,)."""
        return as_float(x[:1]).new_zeros(len(x))

    def to_dict(self) -> dict[str, Any]:
        """The spec."""
        return _spec(self, threshold=self.threshold)


@dataclass(frozen=True, kw_only=True)
class OneHot:
    """z_k = [x = k]: codes 0 … K - 1 (B, *) to one-hot rows (B, *, K), for energies of K states.

    `inverse` is the state with the largest number. What is left of a row is a state, whose probability takes the place
    of a density, so `log_abs_det` is zero. A code that is none of these becomes zeros.

    Args:
        num_states: K, 2 or more; None: one more than the largest code of the fit.
    """

    num_states: int | None = None

    def __post_init__(self):
        if self.num_states is not None:
            check.whole("num_states", self.num_states, 2)

    def fit(self, x: Tensor) -> Self:
        """A copy with K of codes x (N, *), where it is not given."""
        return self if self.num_states is not None else replace(self, num_states=max(2, int(x.max()) + 1))

    def forward(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, "b *d k"]:
        """One-hot rows, in x's type; float32 for whole numbers."""
        if self.num_states is None:
            raise _not_fitted(self)
        states = torch.arange(self.num_states, device=x.device, dtype=x.dtype)
        return (x[..., None] == states).to(x.dtype if x.is_floating_point() else torch.float32)

    def inverse(self, z: Float[Tensor, "b *d k"]) -> Float[Tensor, "b *d"]:
        """The codes."""
        return z.argmax(-1).to(z.dtype)

    def log_abs_det(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Zeros (B,)."""
        return torch.zeros(len(x), dtype=x.dtype if x.is_floating_point() else torch.float32, device=x.device)

    def to_dict(self) -> dict[str, Any]:
        """The spec."""
        return _spec(self, num_states=self.num_states)


@dataclass(frozen=True, kw_only=True)
class Composed:
    """z = f_n(… f_1(x)): parts in the order in which they are applied."""

    parts: Sequence[Transform] = ()

    def fit(self, x: Tensor) -> Self:
        """A copy whose parts are fitted one after the other, each on the output of the ones before."""
        fitted: list[Transform] = []
        for part in self.parts:
            fitted.append(part.fit(x))
            x = fitted[-1].forward(x)
        return replace(self, parts=tuple(fitted))

    def forward(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """The parts, first to last."""
        for part in self.parts:
            x = part.forward(x)
        return as_float(x)

    def inverse(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """The parts' inverses, last to first."""
        for part in reversed(self.parts):
            z = part.inverse(z)
        return z

    def log_abs_det(self, x: Shaped[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The sum of the parts' terms, each where it is applied."""
        total = Identity().log_abs_det(x)
        for part in self.parts:
            total, x = total + part.log_abs_det(x), part.forward(x)
        return total

    def to_dict(self) -> dict[str, Any]:
        """The spec, with the parts' specs as a list."""
        return _spec(self, parts=[part.to_dict() for part in self.parts])


def _spec(transform: object, **fields: Any) -> dict[str, Any]:
    return {"type": type_name(type(transform)), **fields}


def _not_fitted(transform: object) -> UserError:
    hint = "call fit(x) on training data, or give its values"
    return UserError("must be fitted", argument=type(transform).__name__, hint=hint)


def _average(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over rows of f(rows), in float64, by slices, so that uint8 data are not widened at once."""
    return torch.stack([f(as_float(rows).double()).sum(0) for rows in x.split(4096)]).sum(0) / len(x)
