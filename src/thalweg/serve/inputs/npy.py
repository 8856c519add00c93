"""An array in numpy's file format. The header is read by its three entries and held against the bytes that follow.

numpy's own reader takes the header for a Python literal and allocates what it declares; this one runs nothing,
allocates nothing, and knows numbers alone.
"""

import math
import re

import numpy as np

from thalweg.bundle.servable import TensorSpec
from thalweg.serve.errors import malformed, unusable
from thalweg.serve.inputs.conform import check_rows, conform
from thalweg.serve.inputs.truths import encode_truths
from thalweg.serve.models import ServedModel

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 4096
ENTRIES = re.compile(
    r"""\{\s*(?=[^}]*['"]descr['"]\s*:\s*['"](?P<descr>[<>|=]?[biuf]\d{1,2})['"])"""
    r"""(?=[^}]*['"]fortran_order['"]\s*:\s*(?P<fortran>True|False))"""
    r"""(?=[^}]*['"]shape['"]\s*:\s*\((?P<shape>[\d,\sL]{0,200})\))[^}{]{0,1000}\}\s*"""
)


def read_npy(data: bytes) -> np.ndarray:
    """The array, which lies in the bytes themselves; 400 for anything that is not one of numbers."""
    if data[:6] != MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise malformed("must be an npy file")
    start, size = (10, 2) if data[6] == 1 else (12, 4)
    length = int.from_bytes(data[8 : 8 + size], "little")
    if length > LONGEST_HEADER or start + length > len(data):
        raise malformed("must be an npy file with a short header")
    found = ENTRIES.fullmatch(data[start : start + length].decode("latin-1"))
    if found is None:
        raise malformed("must be an npy file of numbers, neither of objects nor of records")
    try:
        dtype = np.dtype(found["descr"])
        shape = tuple(int(size) for size in re.findall(r"\d{1,18}", found["shape"]))
    except (TypeError, ValueError) as error:
        raise malformed("must be an npy file of numbers") from error
    count, body = math.prod(shape), len(data) - start - length
    if len(shape) <= 8 and count == body == 0:
        raise malformed(f"must have one row or more, and no size of 0, and has the shape {shape}")
    if count * dtype.itemsize != body or len(shape) > 8:
        raise malformed(f"must be an npy file whose header and size agree: {body} bytes follow the header")
    order = "F" if found["fortran"] == "True" else "C"
    return np.frombuffer(data, dtype, count, start + length).reshape(shape, order=order)


def of_array(model: ServedModel, array: np.ndarray, max_batch: int) -> dict[str, np.ndarray]:
    """The inputs of an array (B, *): images and rows as they are, a table's columns in order."""
    content = model.servable.content
    if content == "text" or any(spec.datatype == "BYTES" for spec in model.inputs):
        raise unusable(f"must be JSON or CSV, as {model.name} takes texts", code="wrong_content")
    if array.ndim < 2:
        raise unusable(f"must have a dimension of rows first, and has the shape {array.shape}", "x")
    check_rows(len(array), max_batch)
    if content == "table":
        if array.shape[1:] != (len(model.inputs),):
            text = f"must have the shape (N, {len(model.inputs)}), a column an input, and has {array.shape}"
            raise unusable(text, "x")
        assert model.columns is not None  # as those of every table are known
        both = zip(array.T, model.columns.columns, model.inputs, strict=True)
        return {
            spec.name: conform(encode_truths(part, holds, spec) if part.dtype.kind == "b" else part, spec, rounds=True)
            for part, holds, spec in both
        }
    (spec,) = model.inputs
    if content == "image":
        return {"x": _image(array, spec)}
    return {"x": conform(array, spec, rounds=True)}


def _image(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """(B, C, H, W); one image without its batch axis, and grey ones without the channel, are taken too."""
    shape = spec.shape[1:]
    if array.shape == shape:
        array = array[None]
    if array.ndim == 3 and shape[0] == 1:
        array = array[:, None]
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / np.float32(255)
    return conform(array, spec, rounds=True)
