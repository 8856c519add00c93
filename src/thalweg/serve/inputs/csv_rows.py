"""Rows of a CSV, whose first line names the columns, as arrays by name."""

import csv
import io
import re

import numpy as np

from thalweg.data.columns.reading_options import NA_WORDS
from thalweg.serve.errors import malformed, unusable
from thalweg.serve.inputs.conform import check_rows, require_columns
from thalweg.serve.inputs.instances import as_objects, column
from thalweg.serve.models import ServedModel

NUMBER = re.compile(r"[+-]?(?:\d{1,310}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,4})?", re.ASCII)
MISSING = frozenset({"", *NA_WORDS})


def of_csv(model: ServedModel, data: bytes, max_batch: int) -> dict[str, np.ndarray]:
    """The inputs of a table or, in a column `x`, of texts. 400 for what is no CSV, 422 for other columns."""
    if model.servable.content not in ("table", "text"):
        raise unusable(f"must be JSON or npy, as {model.name} takes no columns", code="wrong_content")
    try:
        text = data.decode("utf-8-sig")
        lines = list(_read(text, max_batch))
    except UnicodeDecodeError as error:
        raise malformed("must be UTF-8") from error
    except csv.Error as error:
        raise malformed(f"must be CSV: {error}") from error
    if not lines:
        raise malformed("must have a line that names the columns")
    names, rows = lines[0], lines[1:]
    if len(set(names)) != len(names):
        raise malformed("must name each column once")
    require_columns(model.inputs, dict.fromkeys(names))
    check_rows(len(rows), max_batch)
    odd = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
    if odd is not None:
        raise malformed(f"must have {len(names)} values, not {len(rows[odd])}", f"row {odd + 1}")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    found = {}
    for spec in model.inputs:
        values = columns[spec.name]
        if spec.datatype == "BYTES":
            text_model = model.servable.content == "text"
            found[spec.name] = as_objects(values if text_model else [None if v in MISSING else v for v in values])
        else:
            found[spec.name] = column(spec, [_number(v.strip(), spec.name) for v in values])
    return found


def _read(text: str, max_batch: int):
    """Lines, one more than the header and as many rows as are allowed."""
    for row in csv.reader(io.StringIO(text, newline=""), strict=True):
        if row:
            yield row
            max_batch -= 1
        if max_batch < -1:
            return


def _number(value: str, name: str) -> float | None:
    if value in MISSING:
        return None
    if not NUMBER.fullmatch(value):
        raise unusable(f"must be a number, not {value[:40]!r}", name)
    return float(value)
