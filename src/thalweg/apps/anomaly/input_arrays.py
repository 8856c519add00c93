"""Checks of arrays that are given to a detector: scikit-learn's own, with the row, the column and a remedy."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.data.bad_rows import BadRows
from thalweg.data.columns.column_reader import Column
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.reading_options import IN_MEMORY, option
from thalweg.data.validate import check_cells


@contextmanager
def array_errors(x: Any) -> Iterator[None]:
    """Turn what scikit-learn's `validate_data` raises on x into one line, a UserError. It still says `convert string to
    float`, `Complex data not supported` and `Reshape your data`, which its own estimator checks look for.
    """
    kinds = _dtypes(x)
    dates = [dtype for dtype in kinds if getattr(dtype, "kind", "") in ("M", "m")]
    if dates:
        raise UserError(
            f"must not hold dates ({dates[0]})", argument="X", hint="turn them into numbers, as an age in days"
        )
    if any(getattr(dtype, "kind", "") == "c" for dtype in kinds):
        hint = "give real and imaginary part as two columns"
        raise UserError("Complex data not supported", argument="X", hint=hint)
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        text = _first_text(x)
        if text is not None:
            raise UserError(f"{text}; could not convert string to float", argument="X", hint=CATEGORIES) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(" ".join(lines if len(lines) < 3 else [lines[0], lines[-1]]), argument="X") from error


def _dtypes(x: Any) -> list[Any]:
    """The types of an array or a frame; of a list, that of the array it makes."""
    if isinstance(x, list | tuple):
        try:
            return [np.asarray(x).dtype]
        except ValueError:  # ragged
            return []
    found: Any = getattr(x, "dtypes", getattr(x, "dtype", None))  # a frame without names has many
    return list(np.ravel(found))


def check_rows(
    x: np.ndarray,
    columns: Columns | None,
    *,
    where: str = IN_MEMORY,
    first: int = 0,
    gaps: bool,
    least: int = 0,
    bad_rows: BadRows | None = None,
) -> None:
    """UserError, with the column and the row, for infinity, for NaN unless `gaps` may be, and for fewer than `least`
    rows; `first` is the number of the first row. `bad_rows`: what becomes of such rows of a table.
    """
    if len(x) < least:
        raise UserError(f"must hold {least} row{'s' * (least > 1)} or more, and holds {len(x)}", argument=where)
    hint = f"drop the row, or fit with {option(where, 'missing', 'marginalise')}"
    if columns is not None:
        names = [columns.names[i] for i in columns.owners]
        rows = range(first, first + len(x))
        return check_cells(x, names, where, rows=rows, gaps=gaps, hint=hint, bad_rows=bad_rows)
    bad = np.isinf(x) if gaps else ~np.isfinite(x)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        at = f"X[{row}, {column}] is"
        infinite = np.isinf(x[row, column])
        what = "infinite (infinity)" if infinite else "missing (NaN)"
        raise UserError(f"{at} {what}", argument=where, hint="mend it" if infinite else hint)


def numbered(named: Sequence[str], names: Sequence[str], where: str) -> Columns:
    """Columns of numbers, x0, x1, … (`named`) or 0, 1, …, for a detector that was fitted on an array; UserError where
    a table with columns of these `names` has neither.
    """
    for wanted in (named, [str(i) for i in range(len(named))]):
        if set(wanted) <= set(names):
            return Columns(tuple(map(Column, wanted)))
    what = f"must have the columns {named[0]} to {named[-1]}, as the detector was fitted on an array"
    hint = "rename the table's, or give a CSV of as many columns with --no-header"
    raise UserError(what, argument=where, hint=hint)


CATEGORIES = "give categories in a table with names (pandas, polars), or a number"


def _first_text(x: Any) -> str | None:
    """Where the first value is that is no number; None where all are."""
    for i, row in enumerate(np.asarray(x, dtype=object)):
        for j, value in enumerate(np.ravel(np.asarray(row, dtype=object))):
            try:
                float(value)
            except (TypeError, ValueError):
                return f"X[{i}, {j}] holds {value!r:.60}"
    return None


def checked_pixels(x: Any) -> Any:
    """Images as an array or tensor, each still to be checked by the energy; UserError for a path."""
    if isinstance(x, str | bytes | os.PathLike):
        hint = "read the images into an array (N, H, W) or (N, C, H, W)"
        raise UserError("must be images, not a path", argument="X", value=x, hint=hint)
    if isinstance(x, Tensor):
        return x
    try:
        found = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise UserError(f"must be an array of pixels ({str(error).splitlines()[0]})", argument="X") from error
    if found.ndim not in (3, 4):
        raise UserError(f"must be images (N, H, W) or (N, C, H, W), not of shape {found.shape}", argument="X")
    return found
