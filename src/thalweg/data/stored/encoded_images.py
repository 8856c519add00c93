"""Images as the bytes of image files, in a column of Parquet files or of a set on the Hub, decoded when a step needs
them."""

import hashlib
import io
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import DamagedFile, UserError, row_from_zero
from thalweg.data.file_digests import FileDigests
from thalweg.data.formats.base import reading_table
from thalweg.data.formats.images import decode, probe
from thalweg.data.formats.parquet import Parquet
from thalweg.data.image_files import LeftOut
from thalweg.data.stored.row_groups import RowGroups
from thalweg.data.stored_rows import EpochOrder, Rows, StoredRows


class EncodedImageRows(StoredRows):
    """Abstract: the images of a column, uint8 (N, C, H, W), by the rule of `formats.images`.

    Their headers are read once, at first: grey if none has colour, and one size, that of most.

    Args:
        where: What messages call the column.
        size: The side of the square to which all are resized and cropped; None: they must have one size.
        skip_bad: Leave out rows that cannot be used, for which each is decoded once; `left_out` says which and why,
            `kept` which are left.
        wanted: (C, H, W) of the model that they are for; None: grey or colour, and a size, as most have.
    """

    dtype = torch.uint8

    def __init__(self, where: str, size: int | None, skip_bad: bool, wanted: tuple[int, ...] | None = None):
        self.where, self.size, self.skip_bad, self.wanted = where, size, skip_bad, wanted
        self.left_out: list[LeftOut] = []
        self.kept, self.shape = self._survey()

    @abstractmethod
    def all_bytes(self) -> Iterable[bytes]:
        """The bytes of every row, in order."""

    @abstractmethod
    def bytes_of(self, rows: Tensor) -> Iterator[tuple[int, bytes]]:
        """The bytes of some rows, each with its place in `rows`, in any order."""

    def read(self, rows: Tensor) -> Tensor:
        """Decoded in the calling thread."""
        numbers = self.kept[rows]
        x = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, data in self.bytes_of(numbers):
            x[place] = self._decoded(data, int(numbers[place]))
        return torch.from_numpy(x)

    def _decoded(self, data: bytes, row: int) -> np.ndarray:
        channels, height, width = self.shape[1:]
        try:
            self._require_there(data, row)
            pixels = decode(io.BytesIO(data), channels=channels, size=self.size, where=self._name(row))
        except UserError as error:
            raise error.replace(skippable=True) from error
        if pixels.shape != tuple(self.shape[1:]):
            what = f"is {pixels.shape[2]} x {pixels.shape[1]} pixels, the others are {width} x {height}"
            raise UserError(what, argument=self._name(row), hint="resize it")
        return pixels

    def _require_there(self, data: bytes, row: int) -> None:
        if not data:
            hint = "fill or drop the row"
            raise DamagedFile("missing or empty, where an image was wanted", argument=self._name(row), hint=hint)

    def _name(self, row: int) -> str:
        return f"{self.where}, {row_from_zero(row)}"

    def _survey(self) -> tuple[Tensor, torch.Size]:
        """Which rows are used, and the shape of them all, by their headers."""
        rows, widths, heights, greys = array("q"), array("I"), array("I"), array("b")
        for row, data in enumerate(self.all_bytes()):
            try:
                self._require_there(data, row)
                header = probe(io.BytesIO(data), where=self._name(row))
                if self.skip_bad:  # what lies behind a header is known by decoding it
                    decode(io.BytesIO(data), where=self._name(row))
            except UserError as error:
                self._leave_out(row, error)
                continue
            rows.append(row)
            widths.append(header.width)
            heights.append(header.height)
            greys.append(header.grey)
        sizes = np.stack([np.array(widths), np.array(heights)], 1)
        good = np.full(len(rows), True)
        self.num_resized = 0 if self.size is None else int((sizes != self.size).any(1).sum())
        if len(rows) and self.size is None:
            most = np.array(Counter(zip(widths, heights, strict=True)).most_common(1)[0][0])
            others = "most are"
            if self.wanted is not None:
                most, others = np.array(self.wanted[:0:-1]), "the model's are"
            good = (sizes == most).all(1)
            for i in np.flatnonzero(~good).tolist():
                what = f"is {widths[i]} x {heights[i]} pixels, {others} {most[0]} x {most[1]}"
                hint = "size=64 (--size 64) resizes and crops all" if self.wanted is None else "resize it"
                self._leave_out(rows[i], UserError(what, argument=self._name(rows[i]), hint=hint))
        if not good.any():
            why = f", and the first is: {self.left_out[0].reason}" if self.left_out else ""
            raise UserError(f"holds no image that can be used{why}", argument=self.where, hint="name another column")
        width, height = sizes[good][0].tolist() if self.size is None else (self.size, self.size)
        kept = torch.from_numpy(np.array(rows)[good])
        channels = (1 if np.array(greys)[good].all() else 3) if self.wanted is None else self.wanted[0]
        return kept, torch.Size([len(kept), channels, height, width])

    def _leave_out(self, row: int, error: UserError) -> None:
        if not self.skip_bad:
            raise error.replace(skippable=True)
        self.left_out.append(LeftOut(row_from_zero(row), error.reason))


class ParquetImageRows(EncodedImageRows):
    """The images of a column of Parquet files.

    Args:
        files: Files of one schema.
        column: Holds the bytes of image files, or the Hub's pairs of bytes and path.
        size: As in `EncodedImageRows`, like `skip_bad` and `wanted`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        *,
        size: int | None = None,
        skip_bad: bool = False,
        wanted: tuple[int, ...] | None = None,
    ):
        place = files[0] if len(files) == 1 else files[0].parent
        require_rows(files)
        self.files, self.column = FileDigests(files, place), column
        where = f"{place}, column {column!r}"
        self._groups = RowGroups(files, [column], 1, lambda table, _: bytes_in(table[column], where))
        super().__init__(where, size, skip_bad, wanted)

    def all_bytes(self) -> Iterator[bytes]:
        """Piece by piece."""
        for i in range(len(self._groups.pieces)):
            yield from self._groups.piece(i)

    def bytes_of(self, rows: Tensor) -> Iterator[tuple[int, bytes]]:
        """Piece by piece."""
        for piece, places, inside in self._groups.of(rows):
            yield from ((place, piece[i]) for place, i in zip(places.tolist(), inside.tolist(), strict=True))

    def digest(self) -> str:
        """Of the files' bytes, and of how they are read."""
        how = f"{self.column} {self.size} {len(self.left_out)} {self.files.together}"
        return hashlib.sha256(how.encode()).hexdigest()

    def order(self, rows: Rows, seed: int, epoch: int) -> EpochOrder:
        """Row groups are shuffled, then the rows of some at a time (`row_groups`)."""
        return self._groups.order(lambda row: rows.before(torch.searchsorted(self.kept, row)), seed, epoch)


def parquet_files(path: Path) -> list[Path]:
    """A Parquet file, or those that lie directly in a folder, sorted by name."""
    if path.is_dir():
        found = (file for file in path.iterdir() if file.suffix.lower() in Parquet.suffixes)
        return sorted(file for file in found if not file.name.startswith("."))
    return [path] if path.is_file() and path.suffix.lower() in Parquet.suffixes else []


def require_rows(files: Sequence[Path]) -> None:
    """UserError where Parquet files hold no row between them."""
    from pyarrow import parquet

    for file in files:
        with reading_table(file):
            if parquet.read_metadata(file).num_rows:
                return
    where = files[0] if len(files) == 1 else files[0].parent
    raise UserError("has no rows", argument=str(where), hint="give Parquet with one row or more")


def image_column(file: Path, column: str | None = None) -> str:
    """The column of a Parquet file that holds images: `column` where it is there, else the only one of bytes."""
    from pyarrow import parquet

    with reading_table(file):
        schema = parquet.read_schema(file)
    found = [field.name for field in schema if _is_bytes(field.type)]
    if column in schema.names:
        return str(column)
    if len(found) != 1:
        what = f"has several columns of bytes: {', '.join(found)}" if found else "has no column of image files' bytes"
        hint = f"the model's images were in a column {column or 'image'!r}, so name it so"
        raise UserError(what, argument=str(file), hint=hint)
    return found[0]


def _is_bytes(kind: Any) -> bool:
    """Whether an Arrow type is one of bytes, or of the Hub's pairs of bytes and path."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def bytes_in(column: Any, where: str) -> list[bytes]:
    """The bytes of each image of an Arrow column, empty where there are none; UserError for other things."""
    import pyarrow as pa

    column = column.combine_chunks()
    if pa.types.is_struct(column.type) and (i := column.type.get_field_index("bytes")) >= 0:
        column = column.flatten()[i]
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        what = f"must hold the bytes of image files, and holds {column.type}"
        raise UserError(what, argument=where, hint="name the column of images, as by data.column=image")
    return [data or b"" for data in column.to_pylist()]
