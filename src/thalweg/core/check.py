"""Checks of arguments, each with one form of message.

`positive(step_size=self.step_size)` names the argument and its value once. All raise `UserError`; NaN never passes.
"""

import itertools
import math
import operator
import os
from collections.abc import Collection
from typing import Any

from thalweg.core.errors import UserError, shown


def positive(**numbers: Any) -> None:
    """Each above zero; infinity passes."""
    _each(numbers, lambda x: x > 0, "must be positive")


def non_negative(**numbers: Any) -> None:
    """Each zero or more, and finite."""
    _each(numbers, lambda x: 0 <= x < math.inf, "must be zero or more")


def finite(**numbers: Any) -> None:
    """Each neither infinite nor NaN."""
    _each(numbers, math.isfinite, "must be finite")


def share(**numbers: Any) -> None:
    """Each in [0, 1]: a share or a probability."""
    _each(numbers, lambda x: 0 <= x <= 1, "must be in [0, 1]")


def count(**numbers: Any) -> None:
    """Each a whole number from 1 up."""
    for name, value in numbers.items():
        whole(name, value, 1)


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """The value as an int; UserError unless it is a whole number in [low, high] and no bool."""
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or (high is not None and number > high):
        bounds = f"of {low} or more" if high is None else f"in [{low}, {high}]"
        raise UserError(f"must be a whole number {bounds}", argument=name, value=stated(value))
    return number


def one_of(choices: Collection[str], **words: Any) -> None:
    """Each one of the choices."""
    for name, value in words.items():
        if not isinstance(value, str) or value not in choices:
            raise UserError(f"must be one of {', '.join(choices)}", argument=name, value=stated(value))


def increasing(**numbers: Any) -> None:
    """Each above the one before, and all finite: the ends of a range, such as `low=…, high=…`."""
    values = list(numbers.values())
    good = all(_is_number(x) and math.isfinite(x) for x in values)
    if not good or any(not a < b for a, b in itertools.pairwise(values)):
        pairs = ", ".join(f"{name}={shown(value)}" for name, value in numbers.items())
        raise UserError(f"must be finite, with {' < '.join(numbers)}", argument=pairs)


def fits_memory(n: int, shape: tuple[int, ...]) -> None:
    """UserError unless n float32 samples of a shape fit in the machine's memory."""
    wanted = 2 * 4 * n * math.prod(shape)  # twice, as blocks are joined
    if hasattr(os, "sysconf") and wanted > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        condition = f"must fit in this machine's memory; {wanted / 2**30:.0f} GiB do not"
        raise UserError(condition, argument="n", value=n, hint="make several calls")


def _each(numbers: dict[str, Any], holds: Any, condition: str) -> None:
    for name, value in numbers.items():
        if not _is_number(value) or not holds(value):
            raise UserError(condition, argument=name, value=stated(value))


def _is_number(value: Any) -> bool:
    """A real number of Python, numpy or torch (0-d), and no bool."""
    if isinstance(value, bool) or getattr(value, "ndim", 0):
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return not isinstance(value, str | bytes)


def stated(value: Any) -> Any:
    """The value of an error: a 0-d array as its number; None as an object that is shown, as None itself is not."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    return _NONE if value is None else value


class _Nothing:
    def __repr__(self) -> str:
        return "None"


_NONE = _Nothing()
