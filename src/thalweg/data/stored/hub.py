"""Sets of the Hugging Face Hub, by the package `datasets`: `hub:user/name`, and folders that it has saved.

`datasets` keeps a set in files of Arrow, which are mapped, so that a row costs no memory before it is used.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from thalweg.core.errors import UserError, one_line
from thalweg.data.columns.layout import Layout
from thalweg.data.files import LARGEST
from thalweg.data.labelled_tables import classes
from thalweg.data.options import DataOptions
from thalweg.data.sets.base import RawData
from thalweg.data.stored.encoded_images import EncodedImageRows, bytes_in
from thalweg.data.stored.opening import images_data
from thalweg.data.validate import check_cells

PREFIX = "hub:"
BLOCK = 256  # rows that are looked at together


class HubImageRows(EncodedImageRows):
    """The images of a column of a set on the Hub.

    Args:
        rows: A set of `datasets`, whose images are not decoded by it.
        column: Its column of images.
        where: What messages call it.
        size: As in `EncodedImageRows`, like `skip_bad`.
    """

    def __init__(self, rows: Any, column: str, where: str, *, size: int | None = None, skip_bad: bool = False):
        self.rows, self.column = rows.select_columns([column]).with_format("arrow"), column
        self._digest = hashlib.sha256(f"{column} {size}".encode())
        super().__init__(where, size, skip_bad)

    def all_bytes(self) -> Iterator[bytes]:
        """In order; hashed as they go by."""
        for start in range(0, len(self.rows), BLOCK):
            for data in self._of(self.rows[start : start + BLOCK]):
                self._digest.update(f"{len(data)} ".encode() + data)
                yield data

    def bytes_of(self, rows: Tensor) -> Iterator[tuple[int, bytes]]:
        """From the mapped files."""
        yield from enumerate(self._of(self.rows[rows.tolist()]))

    def digest(self) -> str:
        """Of the bytes of all images, as they were at first."""
        return self._digest.hexdigest()

    def _of(self, table: Any) -> list[bytes]:
        found = bytes_in(table[self.column], self.where)
        if all(found):
            return found
        pairs = zip(found, table[self.column].to_pylist(), strict=True)  # a set made of files may name them instead
        return [data or _file_bytes(pair) for data, pair in pairs]


def _file_bytes(image: Any) -> bytes:
    """The bytes of the file that an image without bytes names; none where it names none that is there."""
    path = image.get("path") if isinstance(image, dict) else None
    return Path(path).read_bytes() if path is not None and Path(path).is_file() else b""


def read_hub(name: str, options: DataOptions) -> RawData:
    """The set `hub:user/name`: images as bytes of the column `options.column`, or a table of numbers.

    UserError: no package `datasets`, no network, no such set, configuration, split or column.
    """
    rows = _loaded(name.removeprefix(PREFIX), options)
    where = f"{name}, split {options.split or 'train'}"
    columns = list(rows.column_names)
    for wanted in (options.column, options.labels, *options.drop):
        if wanted is not None and wanted not in columns:
            raise UserError(f"no column {wanted!r}", argument=where, hint=f"there are {', '.join(columns)[:200]}")
    labels, names = None, ()
    if options.labels is not None:
        feature = rows.features[options.labels]
        known = feature.names if type(feature).__name__ == "ClassLabel" else ()
        labels, names = classes(_arrow(rows, [options.labels]), options.labels, where, named=known)
    column = options.column or _image_column(rows, options.drop, where)
    if column is None:
        return _table(rows, where, options, labels, names)
    x = HubImageRows(
        _encoded(rows, column), column, f"{where}, column {column!r}", size=options.size, skip_bad=options.skip_bad
    )
    return images_data(x, labels, names, f"{where}, column {column}")


def _arrow(rows: Any, names: list[str]) -> Any:
    """Some columns of all rows, an Arrow table."""
    return rows.select_columns(names).with_format("arrow")[:]


def _loaded(name: str, options: DataOptions) -> Any:
    """The rows, not decoded: of the Hub, or of a folder that `save_to_disk` wrote."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = "pip install thalweg[images]"
        raise UserError("needs the package datasets", argument=f"{PREFIX}{name}", hint=hint) from error
    split = options.split or "train"
    log = logging.getLogger("huggingface_hub")  # which tells of each try to connect
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        if Path(name).is_dir() and (
            (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists()
        ):
            found = datasets.load_from_disk(name)
            return found[split] if isinstance(found, dict) else found
        return datasets.load_dataset(name, options.config, split=split)
    except Exception as error:  # it raises a dozen kinds, its dependencies' among them
        what = f"cannot be fetched ({one_line(error)[:200]})"
        hint = "check its name, data.split, data.config and the network"
        raise UserError(what, argument=f"{PREFIX}{name}", hint=hint) from error
    finally:
        log.setLevel(before)


def _image_column(rows: Any, drop: Sequence[str], where: str) -> str | None:
    """The only column of images; None where there is none."""
    found = [name for name, feature in rows.features.items() if type(feature).__name__ == "Image" and name not in drop]
    if len(found) > 1:
        hint = f"name one of {', '.join(found)}, as by data.column={found[0]}"
        raise UserError("has several columns of images", argument=where, hint=hint)
    return found[0] if found else None


def _encoded(rows: Any, column: str) -> Any:
    """The rows, their images as bytes: of those that are paths the files are read."""
    feature = rows.features[column]
    if type(feature).__name__ != "Image":
        return rows
    return rows.cast_column(column, type(feature)(decode=False))


def _table(rows: Any, where: str, options: DataOptions, labels: Tensor | None, names: tuple[str, ...]) -> RawData:
    """The columns of numbers, read whole."""
    import torch

    left_out = [*options.drop, *([options.labels] if options.labels is not None else [])]
    kept = [name for name in rows.column_names if name not in left_out]
    frame = _arrow(rows, kept)
    layout, x = Layout.fit_encode(frame, where=where, ignored=left_out)
    check_cells(x, layout.names or [str(i) for i in range(x.shape[1])], where, largest=LARGEST)
    what = f"{where}, {len(x):,} rows of {x.shape[1]} numbers"
    return RawData(torch.from_numpy(np.ascontiguousarray(x)), labels, what, layout=layout, class_names=names)
