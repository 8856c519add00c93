"""Tensors of the Open Inference Protocol: in JSON, or as bytes behind it, to arrays and back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.bundle.servable import NUMPY, TensorSpec
from thalweg.serve.errors import malformed, unusable
from thalweg.serve.inputs.instances import as_objects, categories
from thalweg.serve.inputs.truths import encode_truths
from thalweg.serve.models import ServedModel

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
LARGEST = 2**53  # of a size


def dtype_of(datatype: Any, name: str) -> np.dtype:
    """numpy's type of a datatype; 400 for one that this service does not read."""
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise malformed(f"must have one of the datatypes {', '.join(DTYPES)}", name)
    return np.dtype(DTYPES[datatype]).newbyteorder("<")


def shape_of(shape: Any, name: str) -> tuple[int, ...]:
    """The sizes; 400 for what is none."""
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8:
        raise malformed("must have a shape of one to eight sizes", name)
    if any(type(size) is not int or not 0 <= size < LARGEST for size in shape):
        raise malformed("must have a shape of whole numbers, from 0 to 2^53", name)
    return tuple(shape)


def from_list(data: Any, datatype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The array of a flat or nested list. null is a missing value of floats and BYTES."""
    dtype, count = dtype_of(datatype, name), math.prod(shape)
    if not isinstance(data, list):
        raise malformed("must have data, a list", name)
    flat = _flat(data, shape, name)
    if len(flat) != count:
        raise malformed(f"must have the {count} values that its shape {list(shape)} says, not {len(flat)}", name)
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        if not kinds <= {str, type(None)}:
            raise malformed("must be strings", name)
        return as_objects(flat).reshape(shape)
    wanted = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}[dtype.kind]
    gaps = {type(None)} if dtype.kind == "f" else set()
    if not kinds <= wanted | gaps:
        gap = "; a missing value is null in a float or BYTES tensor" if type(None) in kinds else ""
        raise malformed(f"must be values of {datatype}{gap}", name)
    if type(None) in kinds:
        flat = [math.nan if value is None else value for value in flat]
    try:
        with np.errstate(over="ignore"):  # infinity is refused below
            found = np.array(flat, np.float64).astype(dtype) if dtype.kind == "f" else np.array(flat, dtype)
    except OverflowError as error:
        raise malformed(f"must be values of {datatype}", name) from error
    if dtype.kind == "f" and np.isinf(found).any():
        raise malformed(f"must be finite values of {datatype}", name)
    return found.reshape(shape)


def from_bytes(data: memoryview, datatype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The array whose values these bytes are, little-endian, row by row; no copy of numbers is made."""
    dtype, count = dtype_of(datatype, name), math.prod(shape)
    if datatype == "BYTES":
        return as_objects(_strings(data, count, name)).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise malformed(f"must have {count * dtype.itemsize} bytes for its shape {list(shape)}, not {len(data)}", name)
    found = np.frombuffer(data, dtype).reshape(shape)
    if datatype == "BOOL" and (found.view(np.uint8) > 1).any():
        raise malformed("must be bytes 0 and 1", name)
    return found


def to_bytes(value: np.ndarray) -> bytes:
    """The reverse of `from_bytes`."""
    if value.dtype.kind != "O":
        return np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    parts = [str(text).encode() for text in value.flat]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def as_input(value: np.ndarray, spec: TensorSpec, model: ServedModel) -> np.ndarray:
    """What the model's kind of data changes: pixels in UINT8 are divided by 255; in a table an empty category is
    missing, and BOOL becomes what the column had for true and false in the fit.
    """
    if model.servable.content == "image" and value.dtype == np.uint8:
        return value.astype(np.float32) / np.float32(255)
    if model.columns is not None:
        holds = model.columns.columns[model.inputs.index(spec)]
        if value.dtype.kind == "b":
            return encode_truths(value, holds, spec)
        if value.dtype.kind == "O":
            return categories([*value.flat], holds, model.columns.reading).reshape(value.shape)
    if spec.datatype == "BYTES" and value.dtype.kind == "O" and any(text is None for text in value.flat):
        raise unusable("must be strings, without null", spec.name)
    return value


def datatype_of(value: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """An output in its stated datatype."""
    return np.asarray(value, NUMPY[spec.datatype])


def _flat(data: list[Any], shape: tuple[int, ...], name: str) -> list[Any]:
    """The values of nested lists of exactly this shape in order; of a flat list itself."""
    if not any(isinstance(part, list) for part in data):
        return data
    wrong = malformed(f"must be a flat list, or nested lists of the shape {list(shape)}", name)
    level: Sequence[Any] = [data]
    for size in shape:
        if any(not isinstance(part, list) or len(part) != size for part in level):
            raise wrong
        level = [value for part in level for value in part]
    if any(isinstance(value, list) for value in level):
        raise wrong
    return list(level)


def _strings(data: memoryview, count: int, name: str) -> list[str]:
    """Strings, each behind its length in 4 bytes."""
    if len(data) < 4 * count:
        raise malformed(f"must have {count} strings, each behind its length in 4 bytes", name)
    found, at = [], 0
    try:
        for _ in range(count):
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            if at + 4 > len(data) or end > len(data):
                raise malformed("must have the bytes that the lengths of its strings say", name)
            found.append(str(data[at + 4 : end], "utf-8"))
            at = end
    except UnicodeDecodeError as error:
        raise malformed("must be strings in UTF-8", name) from error
    if at != len(data):
        raise malformed("must have the bytes that the lengths of its strings say", name)
    return found
