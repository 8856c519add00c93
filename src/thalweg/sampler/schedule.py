"""Schedules: numbers that change along a chain, such as a step size that falls.

A schedule is called with the number of the step, 0 at the chain's first, and gives the value at that step. Wherever a
kernel takes a schedule it takes a plain number too, which is the constant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError, kind_of

PROBED = (0, *(2**k for k in range(21)))  # the steps at which a kernel looks at its schedules when it is made


@runtime_checkable
class Schedule(Protocol):
    """A value that follows from the number of the step, by torch operations alone: without `.item()` and without a
    branch on the number. So a step compiles whole, and a device is not waited for."""

    def __call__(self, i: Tensor, /) -> Tensor:
        """The value, 0-d, at step i, 0-d int64, on the device of i."""
        ...


Value = float | Tensor | Schedule


def value_at(value: Value, i: Tensor) -> float | Tensor:
    """The value at step i: of a schedule 0-d, a number or a tensor as it is."""
    return value(i) if callable(value) else value


@dataclass(frozen=True, kw_only=True)
class _Between:
    """Abstract: last + (first - last) w, with w from 1 down to 0."""

    first: float
    last: float
    num_steps: int

    def __post_init__(self):
        check.non_negative(first=self.first, last=self.last)
        check.count(num_steps=self.num_steps)

    def _mix(self, w: Tensor) -> Tensor:
        return self.last + (self.first - self.last) * w

    def _share(self, i: Tensor) -> Tensor:
        """The share of the way that is done at step i, in float64; 1 from step num_steps - 1 on."""
        return (i.double() / max(self.num_steps - 1, 1)).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class Linear(_Between):
    """From `first` at step 0 to `last` at step num_steps - 1 in equal steps; `last` from there on."""

    def __call__(self, i: Tensor, /) -> Tensor:
        """The value at step i."""
        return self._mix(1 - self._share(i))


@dataclass(frozen=True, kw_only=True)
class Cosine(_Between):
    """last + (first - last) (1 + cos(pi s)) / 2, s = i / (num_steps - 1); `last` from s = 1 on.

    Slow at both ends, unlike `Linear`: half of a cosine (Loshchilov & Hutter 2017, without restarts).
    """

    def __call__(self, i: Tensor, /) -> Tensor:
        """The value at step i."""
        return self._mix(_half_cosine(self._share(i)))


@dataclass(frozen=True, kw_only=True)
class WarmRestarts(_Between):
    """A cosine that begins again at `first` every `num_steps` steps (Loshchilov & Hutter 2017).

    last + (first - last) (1 + cos(pi s)) / 2, s = (i mod num_steps) / num_steps. With last = 0 the cyclical schedule of
    Zhang et al. (2020): large steps find modes, small ones sample them. The last step of a cycle is just above `last`.
    """

    def __call__(self, i: Tensor, /) -> Tensor:
        """The value at step i."""
        return self._mix(_half_cosine((i % self.num_steps).double() / self.num_steps))


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """a (b + i)^-gamma (Welling & Teh 2011), a = first offset^gamma: `first` at step 0, then falling without end.

    Args:
        first: The value at step 0.
        offset: b in steps: after b steps the value is first / 2^gamma.
        power: gamma. The mean over a chain of step sizes converges for gamma in (1/2, 1].
    """

    first: float
    offset: float = 1.0
    power: float = 0.55

    def __post_init__(self):
        check.non_negative(first=self.first)
        check.positive(offset=self.offset, power=self.power)
        check.finite(offset=self.offset, power=self.power)

    def __call__(self, i: Tensor, /) -> Tensor:
        """The value at step i."""
        return self.first * (1 + i.double() / self.offset) ** -self.power


@dataclass(frozen=True, kw_only=True)
class TemperatureOfNoise:
    """T = noise² / (2 h): the temperature at which a Langevin step of size h adds noise of that deviation.

    Args:
        noise: The deviation, in units of x, a number or a schedule.
        step_size: h, in squared units of x, a number or a schedule.
    """

    noise: Value
    step_size: Value

    def __post_init__(self):
        check_value(check.non_negative, noise=self.noise)
        check_value(check.positive, step_size=self.step_size)

    def __call__(self, i: Tensor, /) -> Tensor:
        """The value at step i."""
        return value_at(self.noise, i) ** 2 / (2 * value_at(self.step_size, i) + 0 * i.double())


def check_value(holds: Callable[..., None], **values: Any) -> None:
    """UserError unless the check of numbers holds of each value, and all are finite.

    A schedule is looked at in steps 0, 1, 2, 4 … 2^20; it must give one number at each.
    """
    for name, value in values.items():
        if not callable(value) or isinstance(value, type):
            _check_number(holds, name, value)
            continue
        for step in PROBED:
            try:
                _check_number(holds, name, value(torch.tensor(step)))
            except UserError as error:
                hint = f"{kind_of(value)} gives this at step {step}"
                raise error.replace(hint=hint) from error


def _check_number(holds: Callable[..., None], name: str, value: Any) -> None:
    check.finite(**{name: value})
    holds(**{name: value})


def _half_cosine(s: Tensor) -> Tensor:
    """(1 + cos(pi s)) / 2: 1 at s = 0, 0 at s = 1."""
    return (1 + torch.cos(math.pi * s)) / 2
