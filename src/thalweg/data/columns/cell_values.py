"""Values of object columns, as pandas has them: missing values, numbers, texts, and types that are refused."""

import datetime
from collections.abc import Collection, Iterable
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from thalweg.core.errors import UserError

DATES = (datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64)
REMEDIES = (
    (DATES, "turn it into numbers, as an age, or drop it"),
    ((complex, np.complexfloating), "give real and imaginary part as two columns"),
    ((bytes, bytearray), "store it as texts or numbers, or drop it"),
    ((Collection,), "spread it into columns, or drop it"),
    ((object,), "turn it into numbers or texts, or drop it"),
)


def missing(value: Any) -> bool:
    """Whether a value is missing: None, NaN, pandas' NA and NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (is_plain_number(value) and value != value)


def is_plain_number(value: Any) -> bool:
    """Whether a value is a real number, True and False among them."""
    return isinstance(value, Real | Decimal | np.bool_)


def check_kinds(values: Iterable[Any], what: str, where: str) -> None:
    """UserError for the first value that is neither missing, nor a number, nor a text."""
    for value in values:
        if not (isinstance(value, str) or missing(value) or is_plain_number(value)):
            remedy = next(told for kinds, told in REMEDIES if isinstance(value, kinds))
            kind = type(value).__name__
            raise UserError(f"{what} holds values of the kind {kind}", argument=where, hint=remedy)
