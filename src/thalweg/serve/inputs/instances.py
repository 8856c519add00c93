"""Rows of JSON as arrays by name: nested lists, base64 pixels, objects by column, lists in order, or texts."""

import base64
import binascii
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from thalweg.bundle.servable import TensorSpec
from thalweg.data.columns.column_reader import Column
from thalweg.data.columns.reading_options import Reading
from thalweg.serve.errors import malformed, unusable
from thalweg.serve.inputs.conform import check_rows, conform, require_columns
from thalweg.serve.inputs.truths import texts_of_true_and_false
from thalweg.serve.models import ServedModel

LITERALS = bool | None
GAP = "null where a value is missing"


def of_instances(model: ServedModel, instances: Any, literals: bool, max_batch: int) -> dict[str, np.ndarray]:
    """The inputs by name. `literals`: true, false or null stand somewhere in the text.

    400 for what is not of the form, 422 for what the model does not take.
    """
    if not isinstance(instances, list):
        raise malformed("must be a list of rows", "instances")
    check_rows(len(instances), max_batch)
    content = model.servable.content
    if content == "text":
        return {"x": texts(instances)}
    if content == "table":
        return table(model, instances)
    if content == "image":
        return {"x": images(instances, model.inputs[0], literals)}
    return {"x": conform(numbers(instances, "instances", literals, gaps=True), model.inputs[0], rounds=True)}


def texts(values: Sequence[Any]) -> np.ndarray:
    """(B,) objects of str."""
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise malformed("must be a string", instance(i))
    return as_objects(values)


def instance(row: int) -> str:
    """What messages call a row of `instances`: its place, from 0."""
    return f"instances[{row}]"


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """(B,) objects, whatever they are."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def numbers(values: Any, field: str, literals: bool, *, gaps: bool = False) -> np.ndarray:
    """Nested lists of one shape as a float64 array of finite numbers. `gaps`: null is a missing value, NaN."""
    if literals:
        values = _without_literals(values, field, gaps)
        gaps = gaps and literals
    try:
        found = np.asarray(values)
    except ValueError as error:
        raise malformed("must be lists of one length", field) from error
    if found.dtype.kind == "O" and found.size and all(type(v) is int for v in found.flat):
        found = _large(found, field)
    if found.dtype.kind not in "iuf":
        raise malformed("must hold numbers alone" if found.size else "must not be empty", field)
    if found.dtype.kind == "f" and (np.isinf(found) if gaps else ~np.isfinite(found)).any():
        raise malformed("must hold finite numbers", field)
    return np.asarray(found, np.float64)


def table(model: ServedModel, rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """Columns (B,) by name, from objects {column: value} or lists of values in the order of the columns.

    Objects may have columns that the fit left out.
    """
    assert model.columns is not None  # as those of every table are known
    names = [spec.name for spec in model.inputs]
    if all(isinstance(row, dict) for row in rows):
        wanted = set(names)
        for i, row in enumerate(rows):
            if row.keys() != wanted:
                require_columns(model.inputs, row, model.ignored, place=f", unlike in {instance(i)}")
        columns = {name: [row[name] for row in rows] for name in names}
    elif all(isinstance(row, list) for row in rows):
        odd = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
        if odd is not None:
            text = f"must hold {len(names)} values, {', '.join(names[:10])}, not {len(rows[odd])}"
            raise unusable(text, instance(odd))
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    else:
        raise malformed("must be all objects {column: value}, or all lists of values", "instances")
    both, reading = zip(model.inputs, model.columns.columns, strict=True), model.columns.reading
    return {spec.name: column(spec, holds, reading, columns[spec.name]) for spec, holds in both}


def column(spec: TensorSpec, holds: Column, reading: Reading, values: list[Any]) -> np.ndarray:
    """(B,) of a column: numbers with NaN where null stands, or texts and None.

    True and false stand for 1 and 0, or for the texts of the fit, in a column of them, and texts for numbers where the
    fit was told how to read them.
    """
    if holds.categories is not None:
        truths = texts_of_true_and_false(holds)
        _require(values, (str, bool) if truths else (str,), "strings", spec.name)
        return categories([truths[v] if isinstance(v, bool) else v for v in values], holds, reading)
    if not reading.writing.is_plain and any(isinstance(value, str) for value in values):
        values = [_number(value, reading) for value in values]
    kinds = (int, float, bool) if holds.truth else (int, float)
    _require(values, kinds, "true or false, or 1 and 0" if holds.truth else "numbers", spec.name)
    try:
        found = np.array([math.nan if value is None else float(value) for value in values])
    except OverflowError as error:
        raise malformed("must hold finite numbers", spec.name) from error
    if np.isinf(found).any():
        raise malformed("must hold finite numbers", spec.name)
    return conform(found, spec, rounds=True)


def categories(values: Sequence[str | None], holds: Column, reading: Reading) -> np.ndarray:
    """(B,) objects: texts, and None for a missing one, which an empty one is, as in a CSV, or a word of the fit."""
    missing = {"", *reading.words(csv=False)}.difference(holds.categories or ())
    return as_objects([None if value in missing else value for value in values])


def _require(values: Sequence[Any], kinds: Collection[type], wanted: str, field: str) -> None:
    """400 for a value that is neither of these kinds nor null."""
    for value in values:
        if type(value) not in kinds and value is not None:
            row = next(i for i, one in enumerate(values) if type(one) not in kinds and one is not None)
            raise malformed(f"must be {wanted}, or {GAP}, unlike {instance(row)}", field)


def _number(value: Any, reading: Reading) -> Any:
    """The number that a text is by the fit's writing, None where it means a missing value; else the same."""
    if not isinstance(value, str) or value in reading.words(csv=False):
        return None if isinstance(value, str) else value
    number = reading.writing.number(value)
    return value if number is None else number


def images(rows: Sequence[Any], spec: TensorSpec, literals: bool) -> np.ndarray:
    """(B, C, H, W) of nested lists or base64; a grey image may be (H, W)."""
    if all(isinstance(row, list) for row in rows):
        return conform(_channels(numbers(rows, "instances", literals), spec), spec, rounds=True)
    found = np.empty((len(rows), *spec.shape[1:]), np.float32)
    for i, row in enumerate(rows):
        found[i] = image(row, spec, instance(i), literals)
    return found


def image(value: Any, spec: TensorSpec, field: str, literals: bool) -> np.ndarray:
    """(C, H, W) of one image: nested lists, or {"shape", "data"} with base64 of uint8, which are divided by 255."""
    if isinstance(value, dict):
        return pixels(value, spec, field).astype(np.float32) / np.float32(255)
    if not isinstance(value, list):
        raise malformed('must be nested lists, or {"shape": [C, H, W], "data": base64 of uint8}', field)
    found = numbers(value, field, literals)
    if _channels(found[None], spec).shape[1:] != spec.shape[1:]:
        raise unusable(f"must have the shape {spec.shape[1:]}, and has {found.shape}", field)
    named = spec._replace(name=field)  # as the body calls it
    return conform(_channels(found[None], spec), named, rounds=True)[0]


def pixels(value: Mapping[str, Any], spec: TensorSpec, field: str) -> np.ndarray:
    """(C, H, W) uint8 of {"shape": [C, H, W], "data": base64}."""
    shape, data = value.get("shape"), value.get("data")
    if value.keys() != {"shape", "data"} or not isinstance(data, str) or not isinstance(shape, list):
        raise malformed('must be nested lists, or {"shape": [C, H, W], "data": base64 of uint8}', field)
    if any(isinstance(size, bool) or not isinstance(size, int | float) for size in shape):
        raise malformed("must be numbers", f"{field}.shape")
    wanted = list(spec.shape[1:])
    if shape not in (wanted, *([wanted[1:]] if wanted[0] == 1 else [])):
        raise unusable(f"must be {wanted}, not {str(shape)[:80]}", f"{field}.shape")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise malformed("must be base64", f"{field}.data") from error
    if len(raw) != math.prod(wanted):
        raise malformed(f"must be {math.prod(wanted)} bytes, not {len(raw)}", f"{field}.data")
    return np.frombuffer(raw, np.uint8).reshape(wanted)


def _channels(found: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Images (B, H, W) as (B, 1, H, W) where the model is of one channel."""
    return found[:, None] if found.ndim == len(spec.shape) - 1 and spec.shape[1] == 1 else found


def _large(found: np.ndarray, field: str) -> np.ndarray:
    """Whole numbers beyond 64 bits as floats."""
    try:
        return found.astype(np.float64)
    except OverflowError as error:
        raise malformed("must hold finite numbers", field) from error


def _without_literals(value: Any, field: str, gaps: bool) -> Any:
    """The same lists with NaN for null; 400 for true and false, and for null where there are no gaps."""
    if isinstance(value, list):
        return [_without_literals(v, field, gaps) if isinstance(v, list | LITERALS) else v for v in value]
    if gaps and value is None:
        return math.nan
    raise malformed(f"must hold numbers alone, neither true nor false{'' if gaps else ' nor null'}", field)
