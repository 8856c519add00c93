"""Tables of rows, with a column of them as classes where one is named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import ROW, UserError, suggestion
from thalweg.data.columns.layout import Layout
from thalweg.data.columns.reading_options import Reading
from thalweg.data.files import read_rows
from thalweg.data.frames import as_frame, is_numeric, numbers, texts
from thalweg.data.options import DataOptions
from thalweg.data.sets.base import RawData
from thalweg.data.tables import open_table

LARGEST = 2**53  # of a class that is a whole number


def read_table(path: Path, options: DataOptions) -> RawData:
    """The rows of a table; with `labels`, the name of a column, its values as classes, which are no part of a row.

    Classes are numbered in the order of their names; whole numbers are ordered as numbers. UserError for a column that
    is not there, holds fractions, lacks a value, or has a class of one row.
    """
    name, where = options.labels, str(path)
    table: Any = {"header": options.header, "dtype": options.dtype}
    if name is None:
        x, layout, *_ = read_rows(path, drop=options.drop, **table)
        return RawData(x, None, f"{path}, {len(x):,} rows of {contents(layout, x)}", layout=layout)
    opened = open_table(path, header=options.header)
    if name not in opened.names:
        hint = suggestion(name, opened.names)
        raise UserError(f"must be a column of {where}", argument="labels", value=name, hint=hint)
    if name in options.drop:
        raise UserError("must not be left out too", argument="labels", value=name, hint="take it out of drop")
    if name in options.targets:
        raise UserError("must not be a target too", argument="labels", value=name, hint="give one of the two")
    import pyarrow as pa

    x, layout, *_ = read_rows(path, drop=[*options.drop, name], **table)
    with opened.naming_rows():
        labels, names = classes(pa.concat_tables([*opened.blocks([name])]), name, where, parse=opened.is_text)
    what = f"{path}, {len(x):,} rows of {contents(layout, x)} in {len(names)} classes by {name}"
    return RawData(x, labels, what, layout=layout, class_names=names)


def classes(
    frame: Any, name: str, where: str, *, parse: bool = False, named: Sequence[str] = ()
) -> tuple[Tensor, tuple[str, ...]]:
    """(labels (N,) int64, the name of each class) of a column; errors as of `read_table`.

    `parse`: texts may be numbers, as in a CSV. `named`: the names of the classes 0, 1, …, of which some may not occur;
    without it the values are the names.
    """
    series = as_frame(frame, where)[name]
    given = texts(series, name, where, Reading().words(parse))
    lost = next((i for i, value in enumerate(given) if value is None), None)
    if lost is not None:
        text, hint = f"column {name!r}, of labels, is missing in {ROW}", "drop the row, or give its class"
        raise UserError(text, argument=where, hint=hint, row=lost)
    values = _whole(series, given, parse)
    if values is not None and bool((values != np.round(values)).any()):
        text = f"column {name!r}, of labels, holds numbers with fractions, which are no classes"
        raise UserError(text, argument=where, hint="name a column of whole numbers or of texts")
    keys = given if values is None else values.astype(np.int64).tolist()
    found, codes, counts = np.unique(np.array(keys), return_inverse=True, return_counts=True)
    names = tuple(str(key) for key in found.tolist())
    if len(found) < 2:
        text, hint = (
            f"column {name!r}, of labels, holds {str(found[0])!r} alone",
            "name a column of two classes or more",
        )
        raise UserError(text, argument=where, hint=hint)
    rare = next((key for key, count in zip(names, counts, strict=True) if count == 1), None)
    if rare is not None:
        text = f"column {name!r}, of labels, has one row of the class {rare!r}, and training and held-out rows need it"
        raise UserError(text, argument=where, hint="drop the row, or merge the class with another")
    if named:
        return _numbered(keys, name, where, len(named)), tuple(named)
    return torch.from_numpy(codes.reshape(-1).astype(np.int64)), names


def _numbered(keys: list[Any], name: str, where: str, count: int) -> Tensor:
    """Labels that are numbers of `count` classes already."""
    wrong = next((key for key in keys if key not in range(count)), None)
    if wrong is not None:
        text = f"column {name!r}, of labels, holds {wrong!r}, which is none of its {count} classes"
        raise UserError(text, argument=where, hint="drop the rows without a class")
    return torch.tensor(keys)


def _whole(series: Any, given: list[Any], parse: bool) -> np.ndarray | None:
    """The values as numbers, where all are, and none is too large to be told from the next."""
    import narwhals as nw

    if is_numeric(series) and series.dtype != nw.Boolean:
        found = numbers(series)
    else:
        try:
            found = np.array(given, float) if parse else None
        except ValueError:
            return None
    return found if found is not None and bool((np.abs(found) < LARGEST).all()) else None


def contents(layout: Layout, x: Tensor) -> str:
    """`3 numbers`, `2 numbers and 1 category`: what a row of a table holds."""
    texts = len(layout.categories)
    if layout.columns is None or not texts:
        return f"{x.shape[1]} numbers"
    numbers = len(layout.columns.columns) - texts
    found = f"{texts} {'categories' if texts > 1 else 'category'}"
    return f"{numbers} number{'s' * (numbers != 1)} and {found}" if numbers else found
