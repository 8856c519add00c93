"""Rows of a CSV, whose first line names the columns of a model that has names, as arrays by name.

A table is read as `thalweg detect score` and `thalweg score` read a file, by the rules that are stored with the model.
"""

import csv
import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from thalweg.core.errors import UserError
from thalweg.data.columns.column_reader import Column, ColumnReader
from thalweg.data.columns.encoding import Columns, check_names
from thalweg.data.csv_header import Known
from thalweg.data.formats.base import Table
from thalweg.data.frames import as_frame
from thalweg.data.tables import csv_in_memory
from thalweg.serve.errors import line_of, malformed, public, unusable
from thalweg.serve.inputs.conform import RowName, check_rows, conform, require_columns
from thalweg.serve.inputs.instances import as_objects
from thalweg.serve.models import ServedModel

WHERE = "the body"  # what messages call the table
LONGEST = 128  # letters of a number: what a longer text lacks to be one takes long to find out


def of_csv(model: ServedModel, data: bytes, max_batch: int) -> tuple[dict[str, np.ndarray], RowName]:
    """The inputs of a table or, in a column `x`, of texts, and the line of each row.

    400 for what is no CSV, 422 for other columns and for values that the model cannot take.
    """
    content = model.servable.content
    if content not in ("table", "text"):
        raise unusable(f"must be JSON or npy, as {model.name} takes no columns", code="wrong_content")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise malformed("must be UTF-8; save the table as UTF-8") from error
    if content == "text":
        return _texts(model, text, max_batch)
    assert model.columns is not None  # as those of every table are known
    try:
        names = model.columns.names
        known = Known(names, headless=names == [str(i) for i in range(len(names))])
        table = csv_in_memory(data, WHERE, known)
        require_columns(model.inputs, dict.fromkeys(table.names), model.ignored, header=True)
        check_names(table.names, WHERE)
        frame = _frame(table, model.columns, max_batch)
    except UserError as error:
        raise malformed(public(line_of(error))) from error
    return _values(model, model.columns, table, frame), table.row_name


def _frame(table: Table, columns: Columns, max_batch: int) -> pa.Table:
    """The rows with the columns of the model; no more is read where there are too many."""
    blocks, count = [], 0
    for block in table.blocks(columns.names):
        blocks.append(block)
        count += len(block)
        if count > max_batch:
            break
    check_rows(count, max_batch)
    return pa.concat_tables(blocks)


def _values(model: ServedModel, columns: Columns, table: Table, frame: pa.Table) -> dict[str, np.ndarray]:
    """Each column's values: float64, NaN where one is missing, or texts and None."""
    read, series, found = ColumnReader(WHERE, True, range(len(frame)), columns.reading), as_frame(frame, WHERE), {}
    for column, spec in zip(columns.columns, model.inputs, strict=True):
        _refuse_long(frame, column, table)
        try:
            values = read.values(series[column.name], column)
        except UserError as error:
            told = error if error.row is None else error.in_row(table.row_name(error.row))
            raise unusable(public(line_of(told)), column.name) from error
        found[column.name] = conform(values, spec, rounds=True)
    return found


def _refuse_long(frame: pa.Table, column: Column, table: Table) -> None:
    """422 for a text among numbers that is far longer than any number."""
    if column.categories is not None:
        return
    sizes = [len(text) for text in frame[column.name].to_pylist()]
    if max(sizes) > LONGEST:
        place = table.row_name(int(np.argmax(sizes)))
        raise unusable(f"must be a number, and is a text of {max(sizes)} letters in {place}", column.name)


def _texts(model: ServedModel, text: str, max_batch: int) -> tuple[dict[str, np.ndarray], RowName]:
    """The texts of the column `x`, a line each; an empty line is an empty text, as "" in JSON is."""
    values, places = [], []
    try:
        lines = _lines(text)
        _, names = next(lines, ("", []))
        require_columns(model.inputs, dict.fromkeys(names), header=True)
        for place, cells in lines:
            if len(cells) > 1:
                raise malformed(f"must have 1 value, not {len(cells)}; quote a text with commas in it", place)
            values.append(cells[0] if cells else "")
            places.append(place)
            if len(values) > max_batch:
                break
    except csv.Error as error:
        raise malformed(f"must be CSV: {error}") from error
    check_rows(len(values), max_batch)
    return {"x": as_objects(values)}, places.__getitem__


def _lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of each line, with what messages call it."""
    reader, begins = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    for cells in reader:
        yield f"line {begins}", cells
        begins = reader.line_num + 1
