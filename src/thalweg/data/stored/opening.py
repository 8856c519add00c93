"""What lies at a path as rows that stay there, where they are many; small ones are read whole."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from thalweg.data import stored_rows
from thalweg.data.formats.base import reading_array
from thalweg.data.formats.npy import Npy
from thalweg.data.formats.parquet import Parquet
from thalweg.data.labelled_tables import classes
from thalweg.data.options import DataOptions
from thalweg.data.sets.base import RawData
from thalweg.data.stored.encoded_images import EncodedImageRows, ParquetImageRows, parquet_files, require_rows
from thalweg.data.stored.npy import NpyRows, npy_header
from thalweg.data.stored.parquet_table import ParquetTableRows
from thalweg.data.tables import open_table


def stored_at(path: Path, options: DataOptions) -> RawData | None:
    """The rows of a path that are read while they are trained on; None for one that is read whole (`files.read_rows`).

    Those are npy of more than `KEPT_BYTES`, Parquet of as much, and Parquet with images as bytes (`options.column`).
    """
    files = parquet_files(path)
    if options.column is not None and files:
        options.require_effect(str(path), "packed")
        return _images(files, path, options)
    if path.suffix.lower() in Npy.suffixes and path.is_file():
        return _npy(path, options)
    if path.is_file() and path.suffix.lower() in Parquet.suffixes:
        return _table(path, options)
    return None


def _npy(path: Path, options: DataOptions) -> RawData | None:
    with reading_array(path):
        shape, _, dtype = npy_header(path)
    if (
        math.prod(shape) * dtype.itemsize <= stored_rows.KEPT_BYTES
        or len(shape) not in (2, 3, 4)
        or dtype.kind not in "fiub"
    ):
        return None
    options.require_effect(str(path), "array")
    x = NpyRows(path)
    return RawData(x, None, f"{path}, {described(x)}")


def _table(path: Path, options: DataOptions) -> RawData | None:
    table = open_table(path)
    if table.num_bytes <= stored_rows.KEPT_BYTES:
        return None
    options.require_effect(str(path), "table")
    dropped = [*options.drop, *([options.labels] if options.labels is not None else [])]
    labels, names = column_labels([path], options.labels)
    x = ParquetTableRows(path, dropped)
    return RawData(kept_if_small(x), labels, f"{path}, {described(x)}", layout=x.layout, class_names=names)


def _images(files: Sequence[Path], path: Path, options: DataOptions) -> RawData:
    assert options.column is not None  # asked by the caller
    for file in files:
        open_table(file).require([name for name in (options.column, options.labels) if name is not None])
    require_rows(files)
    labels, names = column_labels(files, options.labels)
    x = ParquetImageRows(files, options.column, size=options.size, skip_bad=options.skip_bad)
    return images_data(x, labels, names, f"{path}, column {options.column}")._replace(files=x.files)


def images_data(x: EncodedImageRows, labels: Tensor | None, names: tuple[str, ...], what: str) -> RawData:
    """Images as bytes, with the labels of those that are used."""
    resized = "" if x.size is None else f" (the shorter side resized to {x.size} pixels, the middle kept)"
    notes = [f"left out {each.name}: {each.reason}" for each in x.left_out]
    own = None if labels is None else labels[x.kept]
    return RawData(kept_if_small(x), own, f"{what}, {described(x)}{resized}", class_names=names, notes=tuple(notes))


def column_labels(files: Sequence[Path], column: str | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """The labels in a column of tables, and the names of the classes."""
    if column is None:
        return None, ()
    import pyarrow as pa

    blocks = []
    for file in files:
        table = open_table(file)
        table.require([column])
        blocks += table.blocks([column])
    where = files[0] if len(files) == 1 else files[0].parent
    return classes(pa.concat_tables(blocks), column, str(where))


def described(x: stored_rows.StoredRows) -> str:
    """How many rows, of what."""
    size = " x ".join(map(str, x.shape[1:]))
    return f"{len(x):,} " + (f"images of {size}" if x.ndim == 4 else f"rows of {size} numbers")


def kept_if_small(x: stored_rows.StoredRows) -> Tensor | stored_rows.StoredRows:
    """All rows as a tensor, where they take no more than `KEPT_BYTES`."""
    if x.nbytes > stored_rows.KEPT_BYTES:
        return x
    return torch.cat([*x.split(len(x))]) if len(x) else x[:0]
