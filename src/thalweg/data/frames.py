"""Tables in memory: pandas, polars and Arrow alike, through narwhals."""

from collections.abc import Collection
from typing import Any

import numpy as np

from thalweg.core.errors import UserError, kind_of
from thalweg.data.columns.cell_values import check_kinds, is_plain_number, missing


def is_frame(x: Any) -> bool:
    """Whether x is a table whose columns have names, all of them texts (unlike pandas' default 0, 1, 2, …)."""
    columns = getattr(x, "column_names", getattr(x, "columns", None))
    if columns is None or len(getattr(x, "shape", ())) != 2 or not len(columns):
        return False
    return all(isinstance(name, str) for name in columns)


def names_of(frame: Any) -> list[str]:
    """The names of a frame's columns."""
    return [str(name) for name in getattr(frame, "column_names", getattr(frame, "columns", ()))]


def as_frame(frame: Any, where: str) -> Any:
    """The table as a narwhals frame, a common interface of pandas, polars and Arrow; UserError for anything else."""
    import narwhals as nw

    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError as error:
        hint = "give pandas, polars or an array"
        raise UserError(f"must be a table; it is {kind_of(frame)}", argument=where, hint=hint) from error


def texts(series: Any, name: str, where: str, words: Collection[str] = ()) -> list[str | None]:
    """A column's values as texts, None where one is missing, as are the texts in `words`.

    UserError for what is neither a number nor a text.
    """
    import narwhals as nw

    if series.dtype.is_temporal():
        hint = "drop it, or turn it into numbers, as an age"
        raise UserError(f"column {name!r} holds dates or times", argument=where, hint=hint)
    if series.dtype.is_nested():
        hint = "drop it, or spread it into columns"
        raise UserError(f"column {name!r} holds lists or structures", argument=where, hint=hint)
    values = series.to_list()
    if series.dtype == nw.String:
        return [value if isinstance(value, str) and value not in words else None for value in values]
    if series.dtype == nw.Object:  # pandas' way to hold anything
        check_kinds(values, f"column {name!r}", where)
    if series.dtype in (nw.Binary, nw.Unknown) and any(value is not None for value in values):
        kind = "bytes" if isinstance(next(v for v in values if v is not None), bytes) else "neither numbers nor texts"
        hint = "drop it, or store it as texts or numbers; images are trained on by data.column=NAME"
        raise UserError(f"column {name!r} holds {kind}", argument=where, hint=hint)
    return [None if missing(value) or (isinstance(value, str) and value in words) else str(value) for value in values]


def is_categorical(series: Any) -> bool:
    """Whether the type itself says that these are categories."""
    import narwhals as nw

    return series.dtype in (nw.Categorical, nw.Enum)


def is_numeric(series: Any) -> bool:
    """Whether these are numbers: by their type, or all of them where the type may hold anything."""
    import narwhals as nw

    if series.dtype == nw.Object:
        return all(missing(value) or is_plain_number(value) for value in series.to_list())
    return series.dtype.is_numeric() or series.dtype == nw.Boolean or _is_wide_decimal(series)


def numbers(series: Any) -> np.ndarray:
    """A column of numbers as float64, NaN where one is missing."""
    import narwhals as nw

    if series.dtype == nw.Object:
        return np.array([np.nan if missing(value) else float(value) for value in series.to_list()], float)
    if series.dtype.is_integer():  # Arrow's cast refuses whole numbers that float64 rounds
        return np.array(series.to_numpy(), float)
    return np.array(series.cast(nw.Float64).to_numpy(), float)


def _is_wide_decimal(series: Any) -> bool:
    """Whether these are Arrow's decimals of 256 bits, which narwhals does not know."""
    return series.implementation.is_pyarrow() and str(series.to_native().type).startswith("decimal")
