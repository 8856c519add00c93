"""Files in data units: images uint8 or float32 in [0, 1] as (N, C, H, W), rows float32 or float64 as (N, D).

Which kinds of files there are is said by the modules of `data.formats`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.data.columns.layout import Layout
from thalweg.data.float32_check import check_whole_numbers
from thalweg.data.formats.base import (
    ArrayFormat,
    TableFormat,
    check_dtype,
    check_size,
    format_of,
    reading_array,
    suffixes,
)
from thalweg.data.formats.images import BLACK, WHITE, decode, is_image
from thalweg.data.image_files import names_of, pictures_of, read_pixels, survey
from thalweg.data.tables import open_table
from thalweg.data.validate import arrange, as_floats, check_cells, verify

log = logging.getLogger("thalweg")
LARGEST = float(torch.finfo(torch.float32).max)  # that a network takes


class Rows(NamedTuple):
    """What a file holds, and the columns it was read from if it is a table."""

    x: Tensor  # (N, *)
    layout: Layout
    singles: list[bool] | None = None  # which columns of a table came in float32


def read_array(
    path: str | Path, *, shape: tuple[int, ...] | None = None, finite: bool = True, bounded: bool = True
) -> Tensor:
    """Read npy, npz, CSV, Parquet, one image or a folder of images, checked, in data units: `read_rows` without names.

    Images come as (N, C, H, W), uint8 or float32 in [0, 1]; rows as (N, D), float64 where float32 would round them.
    `shape`, (C, H, W) or (D,), is what each row must have: it picks grey or colour, and lets a file hold one row
    without its batch axis. Where a 4-D array could be read both ways, axis 1 is taken for the channels.
    `finite=False` lets rows with NaN or infinity pass, for the caller to drop; `bounded=False` lets images have any
    values, as masks do, whose transparent parts are black; those of images are white (`data.formats.images`).
    """
    return read_rows(path, shape=shape, finite=finite, bounded=bounded).x


def read_rows(
    path: str | Path,
    *,
    layout: Layout | None = None,
    header: bool | None = None,
    drop: Sequence[str] = (),
    shape: tuple[int, ...] | None = None,
    finite: bool = True,
    bounded: bool = True,
    size: int | None = None,
) -> Rows:
    """As `read_array`, with the names of a table's columns.

    Args:
        path: The file or folder.
        layout: The columns of the model that the rows are for, which a table must have, in any order.
        header: Whether the first line of a CSV names its columns; None: the lines must tell (`data.csv_header`).
        drop: Columns of a table to leave out.
        shape: As in `read_array`, like `finite` and `bounded`.
        size: The side of the square to which pictures are resized and cropped; arrays are not.
    """
    path = Path(path)
    if path.is_file() and is_table(path):
        x, found, singles = _read_table(path, layout, header, drop)
        if finite:
            names = found.names or [str(i) for i in range(x.shape[1])]
            check_cells(x.numpy(), names, str(path), largest=LARGEST)
    else:
        if header is not None or drop:
            option = "drop" if header is None else "header"
            raise UserError(f"has no effect on {path.name}, which is no table", argument=option, hint="leave it out")
        x, found, singles = _read_arrays(path, shape, size, WHITE if bounded else BLACK), Layout(), None
    x = arrange(x, shape, str(path))
    if not bounded and x.ndim == 4:
        verify(x.flatten(1), None, "vector", where=str(path))
        return Rows(x, found, singles)
    some = finite or not x.is_floating_point() or x.ndim < 2
    wanted = x if some else x[x.flatten(1).isfinite().all(1)]
    if len(wanted) or finite:
        verify(wanted, shape, "image" if x.ndim == 4 else "vector", where=str(path))
    return Rows(x, found, singles)


def read_picture(file: Path, *, shape: tuple[int, ...], size: int | None = None) -> Tensor:
    """One picture as uint8 (1, C, H, W) of a shape (C, H, W), and no word of how it was altered; UserError else."""
    pixels = torch.from_numpy(decode(file, channels=shape[0], size=size))[None]
    verify(pixels, shape, "image", where=str(file))
    return pixels


def _read_arrays(path: Path, shape: tuple[int, ...] | None, size: int | None, background: int) -> Tensor:
    """Pixels uint8 or float32, rows float32 or float64; what is what is told by the axes, or by `shape`."""
    if not path.exists():
        raise UserError(
            "no such file or folder", argument=str(path), hint="check the spelling and the working directory"
        )
    if path.is_dir() or is_image(path):
        found = pictures_of(path)
        if found.passed_over:
            log.warning("%s: %s passed over", path, found.passed_over)
        read = survey(found.files, path, shape=shape, size=size, background=background)
        pixels = torch.from_numpy(read_pixels(read, path)[0])
        for line in read.altered(resized=True):
            log.warning("%s: %s", path, line)
        return pixels
    with reading_array(path):
        array = _read(path, shape)
    return rows_of(array, shape, str(path))


def rows_of(array: np.ndarray, shape: tuple[int, ...] | None, where: str) -> Tensor:
    """An array as a file holds it, as pixels uint8 or float32, or rows float32 or float64, not yet checked further."""
    check_dtype(array.dtype, where)
    if (array.ndim > 2 or (shape is not None and len(shape) == 3)) and array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # an overflow is reported as infinity, with its row
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    array = np.ascontiguousarray(array, np.float64 if wide else array.dtype.newbyteorder("="))
    if array.ndim > 2 or (shape is not None and len(shape) == 3):
        return torch.from_numpy(array)
    rows = as_floats(torch.from_numpy(array))
    if array.dtype.kind in "iu" and array.ndim == 2:
        for i, (values, source) in enumerate(zip(rows.numpy().T, array.T, strict=True)):
            check_whole_numbers(values, source, f"column {i + 1}", where)
    return rows


def _read_table(path: Path, layout: Layout | None, header: bool | None, drop: Sequence[str]) -> Rows:
    """A table of numbers as float64 (N, D), matched to a model's columns or with those that it has itself."""
    import pyarrow as pa

    where = str(path)
    table = open_table(path, header=header, known=None if layout is None else layout.known)
    table.require(drop)
    if layout is not None and not table.headless:
        layout.check(table.names, where, drop=drop, mend="leave it out with --drop {name!r}")
    check_size(table.num_bytes, where)
    left_out = {*drop, *(layout.ignored if layout else ())}
    names = [name for name in table.names if name not in left_out]
    blocks = [*table.blocks(names)]
    if not blocks:
        raise UserError("no rows", argument=where, hint="give a table with at least one")
    frame = pa.concat_tables(blocks)
    how = {"where": where, "headless": table.headless, "parse": table.is_text}
    if layout is None:
        layout, x = Layout.fit_encode(frame, ignored=drop, **how)
    else:
        x = layout.encode(frame, **how)
    return Rows(torch.from_numpy(x), layout, None if table.is_text else layout.singles(frame))


def read_names(path: str | Path, num_rows: int | None = None) -> list[str]:
    """One name a row, for score tables: of images the path of the file from the folder given, else row numbers.

    `num_rows`, where the caller has it, spares reading the file again to count.
    """
    path = Path(path)
    if path.is_dir() or is_image(path):
        return names_of(path)
    return [str(i) for i in range(len(read_array(path)) if num_rows is None else num_rows)]


def read_labels(path: Path, num_rows: int) -> Tensor | None:
    """The labels that a file holds beside its rows, int64 (N,); None where it holds none, or none of whole numbers.

    UserError for labels of another number of rows, or beyond 64 bits.
    """
    found = format_of(path)
    y = found.labels(path) if isinstance(found, ArrayFormat) and path.is_file() else None
    if y is None or not bool((np.isfinite(y) & (y == np.round(y))).all()):
        return None
    if y.size != num_rows:
        raise UserError(f"{y.size} labels for {num_rows} rows", argument=str(path), hint="give one a row")
    far = next((v for v in (y.min(), y.max()) if not -(2**63) <= int(v) < 2**63), None)
    if far is not None:
        what = f"a label is {far:g}, which 64 bits do not hold"
        raise UserError(what, argument=str(path), hint="number the classes from 0")
    return torch.from_numpy(y.reshape(-1).astype(np.int64))


def is_table(path: Path) -> bool:
    """Whether a file's ending is that of a table."""
    return isinstance(format_of(path), TableFormat)


def _read(path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    found = format_of(path)
    if not isinstance(found, ArrayFormat):
        hint = f"give a folder or one of {', '.join(suffixes())}"
        what = f"cannot read {path.suffix.lower() or 'a file without ending'}"
        raise UserError(what, argument=str(path), hint=hint)
    return found.read(path, shape)
