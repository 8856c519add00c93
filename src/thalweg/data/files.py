"""Files in data units: images uint8 or float32 in [0, 1] as (N, C, H, W), rows float32 or float64 as (N, D).

Which kinds of files there are is said by the modules of `data.formats`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import UserError, row_from_zero
from thalweg.data.bad_rows import BadRows
from thalweg.data.columns.layout import Layout
from thalweg.data.columns.new_categories import count_new, told
from thalweg.data.float32_check import check_whole_numbers
from thalweg.data.formats.base import (
    ArrayFormat,
    Table,
    TableFormat,
    check_dtype,
    check_size,
    format_of,
    reading_array,
    suffixes,
)
from thalweg.data.formats.images import BLACK, WHITE, is_image
from thalweg.data.image_files import LeftOut, pictures_of, read_pixels, relative, survey
from thalweg.data.stored.encoded_images import ParquetImageRows, image_column, parquet_files
from thalweg.data.tables import open_table
from thalweg.data.validate import arrange, as_floats, check_cells, refuse_deep, verify

log = logging.getLogger("thalweg")
LARGEST = float(torch.finfo(torch.float32).max)  # that a network takes


class Rows(NamedTuple):
    """What a file holds.

    Args:
        x: (N, *).
        layout: The columns that it was read from, if it is a table.
        singles: Which columns of a table came in float32.
        files: Of images in files the path of each from the folder given; empty for others.
        numbers: Which of the rows or files that there are these are, (N,), rising; None: all.
        left_out: What else there was, and why it is not used.
        table: What they were read from, if it is a table, which tells what messages call a row.
    """

    x: Tensor
    layout: Layout = Layout()
    singles: list[bool] | None = None
    files: Sequence[str] = ()
    numbers: Tensor | None = None
    left_out: Sequence[LeftOut] = ()
    table: Table | None = None

    @property
    def names(self) -> list[str]:
        """One name a row, for score tables: of images the path of the file, else the row's number, from 0."""
        return [*self.files] or list(map(str, range(len(self.x)) if self.numbers is None else self.numbers.tolist()))

    @property
    def total(self) -> int:
        """How many rows or files there are, with those that are left out."""
        return len(self.x) + len(self.left_out)


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
    found = read_rows(path, shape=shape, finite=finite, bounded=bounded)
    found.layout.require_numbers(str(path), "encode them as numbers")
    return found.x


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
    dtype: Mapping[str, str] | None = None,
    column: str | None = None,
    skip_bad: bool = False,
) -> Rows:
    """As `read_array`, with the names of rows and of a table's columns.

    For a model of images, `shape` (C, H, W), Parquet holds the bytes of image files in a column.

    Args:
        path: The file or folder.
        layout: The columns of the model that the rows are for, which a table must have, in any order.
        header: Whether the first line of a CSV names its columns; None: the lines must tell (`data.csv_header`).
        drop: Columns of a table to leave out.
        shape: As in `read_array`, like `finite` and `bounded`.
        size: The side of the square to which pictures are resized and cropped; arrays are not.
        dtype: By the names of a table's columns "number" or "category", where the values alone do not tell.
        column: Of images in Parquet: the column that holds them; None, or not there: the only one of bytes.
        skip_bad: Leave out, and name, images that cannot be read, rows that have a text where numbers were in the
            training and, if `finite`, rows that are not; else the first is a UserError, `skippable`.
    """
    path = Path(path)
    packed = parquet_files(path) if shape is not None and len(shape) == 3 else []
    if path.is_file() and is_table(path) and not packed:
        bad = BadRows(skip=skip_bad)
        found, table = _read_table(path, layout, header, drop, dtype, bad)
        names = found.layout.owners or [str(i) for i in range(found.x.shape[1])]
        if finite:
            with table.naming_rows():
                check_cells(found.x.numpy(), names, str(path), largest=LARGEST, bad_rows=bad)
        elif bad.reasons:
            found = _without_texts(found, table, bad)
        not_finite = _NotFinite(table, bad.reasons) if finite and bad.reasons else None
        return _checked(found, str(path), shape, finite, bounded, not_finite)
    if header is not None or drop or dtype:
        option = "header" if header is not None else "drop" if drop else "data.dtype"
        raise UserError(f"is for tables, and {path.name} is none", argument=option, hint="leave it out")
    if packed:
        return _read_packed(packed, shape or (), size, column, skip_bad)
    if path.is_dir() or is_image(path):
        found = _read_pictures(path, shape, size, WHITE if bounded else BLACK, skip_bad)
        return _checked(found, str(path), shape, finite, bounded, None)
    not_finite = _NotFinite() if skip_bad and finite else None
    return _checked(Rows(_read_array(path, shape, bounded)), str(path), shape, finite, bounded, not_finite)


def _without_texts(found: Rows, table: Table, bad: BadRows) -> Rows:
    """The rows that have no text among their numbers; the others are left out. UserError where all have one."""
    good, lost = bad.usable(0, len(found.x)), sorted(bad.reasons)
    if not good.any():
        text = f"must hold a row that can be used; the first is not: {bad.reasons[lost[0]]}"
        raise UserError(text, argument=str(table.path))
    names = zip(table.row_names(lost), (bad.reasons[row] for row in lost), strict=True)
    kept = torch.from_numpy(good).nonzero()[:, 0]
    return found._replace(x=found.x[kept], numbers=kept, left_out=[LeftOut(*each) for each in names])


class _NotFinite(NamedTuple):
    """What rows that are not finite are called, and why they are not, by their number."""

    table: Table | None = None
    reasons: Mapping[int, str] = {}

    def left_out(self, rows: Sequence[int]) -> list[LeftOut]:
        """Each by its name."""
        names = [*map(row_from_zero, rows)] if self.table is None else self.table.row_names(rows)
        why = [self.reasons.get(row, "holds NaN or infinity") for row in rows]
        return [LeftOut(*each) for each in zip(names, why, strict=True)]


def _checked(
    found: Rows,
    where: str,
    shape: tuple[int, ...] | None,
    finite: bool,
    bounded: bool,
    not_finite: _NotFinite | None,
) -> Rows:
    """The rows, arranged as `shape` asks and checked; with `not_finite` without those that are so."""
    x = arrange(found.x, shape, where)
    found = found._replace(x=x)
    if not bounded and x.ndim == 4:
        verify(x.flatten(1), None, "vector", where=where)
        return found
    good = x.to(torch.float32).flatten(1).isfinite().all(1) if x.is_floating_point() and x.ndim > 1 else None
    if not_finite is not None and good is not None and not bool(good.all()):
        lost = not_finite.left_out((~good).nonzero()[:, 0].tolist())
        found, x, good = found._replace(x=x[good], numbers=good.nonzero()[:, 0], left_out=lost), x[good], None
        if not len(x):
            raise UserError("must hold a row that is finite", argument=where, hint="fill what is missing")
    wanted = x if finite or good is None else x[good]
    if len(wanted) or finite:
        verify(wanted, shape, "image" if x.ndim == 4 else "vector", where=where)
    return found


def _read_pictures(
    path: Path, shape: tuple[int, ...] | None, size: int | None, background: int, skip_bad: bool
) -> Rows:
    """A picture, or those of a folder, uint8."""
    _require_there(path)
    listed = pictures_of(path)
    if listed.passed_over:
        log.warning("%s: %s passed over", path, listed.passed_over)
    how: Any = {"shape": shape, "size": size, "background": background, "skip_bad": skip_bad}
    pixels, found = read_pixels(survey(listed.files, path, **how), path, skip_bad=skip_bad)
    for line in found.altered(resized=True):
        log.warning("%s: %s", path, line)
    place = {file: i for i, file in enumerate(listed.files)}
    return Rows(
        torch.from_numpy(pixels),
        files=[relative(file, path) for file in found.files],
        numbers=torch.tensor([place[file] for file in found.files]),
        left_out=found.left_out,
    )


def _read_packed(
    files: Sequence[Path], shape: tuple[int, ...], size: int | None, column: str | None, skip_bad: bool
) -> Rows:
    """The images in a column of Parquet files, for a model of images of a shape."""
    found = ParquetImageRows(files, image_column(files[0], column), size=size, skip_bad=skip_bad, wanted=shape)
    check_size(found.nbytes, found.where)
    if found.num_resized:
        how = f"resized to {size} x {size} pixels, the middle kept, as in training"
        log.warning("%s: %s of %s images %s", found.where, f"{found.num_resized:,}", f"{len(found):,}", how)
    x = torch.cat([*found.split(len(found))])
    verify(x, shape, "image", where=found.where)
    return Rows(x, numbers=found.kept, left_out=found.left_out)


def _read_array(path: Path, shape: tuple[int, ...] | None, bounded: bool) -> Tensor:
    """Pixels uint8 or float32, rows float32 or float64; what is what is told by the axes, or by `shape`."""
    _require_there(path)
    with reading_array(path):
        array = _read(path, shape)
    return rows_of(array, shape, str(path), bounded=bounded)


def _require_there(path: Path) -> None:
    if not path.exists():
        hint = "check the spelling and the working directory"
        raise UserError("no such file or folder", argument=str(path), hint=hint)


def rows_of(array: np.ndarray, shape: tuple[int, ...] | None, where: str, *, bounded: bool = True) -> Tensor:
    """An array as a file holds it, as pixels uint8 or float32, or rows float32 or float64, not yet checked further.

    `bounded`: whether pixels beyond 255 are refused here.
    """
    check_dtype(array.dtype, where)
    if array.ndim == 0:
        what = "must be rows (N, D) or images (N, H, W) or (N, C, H, W); it is a single number"
        raise UserError(what, argument=where)
    if (array.ndim > 2 or (shape is not None and len(shape) == 3)) and array.dtype != np.uint8:
        if bounded:
            refuse_deep(array, where)
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


def _read_table(
    path: Path,
    layout: Layout | None,
    header: bool | None,
    drop: Sequence[str],
    dtype: Mapping[str, str] | None,
    bad_rows: BadRows,
) -> tuple[Rows, Table]:
    """A table as float64 (N, D), matched to a model's columns or with those that it has itself."""
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
    with table.naming_rows():
        if layout is None:
            layout, x = Layout.fit_encode(frame, ignored=drop, dtype=dtype, **how)
        else:
            x = layout.encode(frame, bad_rows=bad_rows, **how)
            _tell_new(layout, table, frame)
    singles = None if table.is_text else layout.singles(frame)
    return Rows(torch.from_numpy(x), layout, singles, table=table), table


def _tell_new(layout: Layout, table: Table, frame: Any) -> None:
    """Say which categories of a table the columns of a model do not know."""
    if layout.columns is None or not layout.categories:
        return
    named = layout.names is not None and not table.headless
    columns = layout.columns if named else layout.columns_called(frame.column_names)
    line = told(columns, count_new(columns, frame, str(table.path), parse=table.is_text))
    if line is not None:
        log.warning("%s: %s", table.path, line)


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
