"""The contract of a kind of file, and how one is found: a module of this package that defines a `FileFormat`.

What a stranger hands over is checked before it is believed: sizes are read from headers before memory is
taken, pickles are never opened, and whatever is wrong becomes one line: what, where and how to mend it.
"""

import csv
import re
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from thalweg.core.discover import by_name, instances
from thalweg.core.errors import DamagedFile, ThalwegError, UserError, row_from_zero
from thalweg.data.csv_header import EXPECTED, Known

LIMIT_BYTES = 8 << 30  # the most an array may declare; a larger one belongs in shards
BLOCK_ROWS = 32_768  # of a table
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7z": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip or xlsx",
}
_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, ArithmeticError, RuntimeError, Warning)
_DAMAGED += (zipfile.BadZipFile, zlib.error, struct.error)
Kind = Literal["image", "vector", "text"]
STREAM = re.compile(r"\s*<_io\.[^>]*>")  # an open file, as messages of others show it


class FileFormat(ABC):
    """Abstract: files with certain endings. Built without arguments; what is heavy is imported in its methods."""

    suffixes: ClassVar[tuple[str, ...]]  # lower case, with the dot
    holds: ClassVar[tuple[Kind, ...]] = ("image", "vector")  # what its rows can be


class ArrayFormat(FileFormat):
    """Abstract: files of one array of rows, images or vectors."""

    @abstractmethod
    def read(self, path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
        """The array as it is stored: real numbers, checked by the caller (`files.read_rows`).

        Args:
            path: A file that is there.
            shape: (C, H, W) or (D,), what a row must be, where the caller knows: it may pick grey or colour.

        Raises:
            OSError, ValueError, …: The file is damaged; the caller makes one line of it.
        """

    def labels(self, path: Path) -> np.ndarray | None:
        """The labels that a file holds beside its rows; None where it has none."""
        return None


@dataclass(frozen=True)
class Table(ABC):
    """Abstract: a table in a file, read block by block, so that it may be larger than memory.

    Its path and the names of its columns, 0, 1, 2, … where no header names them (`headless`). `data`: the bytes of the
    file, where they are in memory and the path is what messages call it.
    """

    path: Path
    names: list[str]
    headless: bool = False
    data: bytes | None = field(default=None, repr=False)

    is_text: ClassVar[bool] = False  # whether values come as texts

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """About what the whole table takes."""

    @abstractmethod
    def batches(self, names: list[str]) -> Iterator[Any]:
        """The rows in order, as Arrow record batches of these columns, in that order."""

    def row_names(self, rows: Sequence[int]) -> list[str]:
        """What messages call rows, by their rising numbers from 0."""
        return [*map(row_from_zero, rows)]

    def row_name(self, row: int) -> str:
        """What messages call a row, by its number from 0."""
        return self.row_names([row])[0]

    @contextmanager
    def naming_rows(self) -> Iterator[None]:
        """Errors about a row of this table call it as `row_name` does."""
        try:
            yield
        except UserError as error:
            if error.row is None:
                raise
            raise error.in_row(self.row_name(error.row)) from error

    def require(self, names: Iterable[str]) -> None:
        """UserError unless the table has columns of these names."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            there = f"there are {', '.join(self.names)[:200]}"
            raise UserError(f"no column {unknown[0]!r}", argument=str(self.path), hint=there)

    def blocks(self, only: Collection[str] | None = None) -> Iterator[Any]:
        """The rows in order, as Arrow tables of at most 32,768 rows, of `only` these columns if given.

        DamagedFile where the file breaks off.
        """
        import pyarrow as pa

        names = self.names if only is None else [name for name in self.names if name in only]
        with reading_table(self.path, self.data):
            for batch in self.batches(names):
                for start in range(0, batch.num_rows, BLOCK_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BLOCK_ROWS)])


class TableFormat(FileFormat):
    """Abstract: files of a table, whose columns have names."""

    holds = ("vector",)
    takes_header: ClassVar[bool] = False  # whether a caller may say that the first line names the columns

    @abstractmethod
    def open(self, path: Path, header: bool | None, known: Known) -> Table:
        """The table in a file that is there and not empty.

        Args:
            path: The file.
            header: Whether the first line names the columns; None: the lines must tell, or what is known.
            known: What a model knows of its tables.
        """


def formats() -> dict[str, FileFormat]:
    """Every kind of file by its endings: those for images and vectors first, then tables, then pictures."""
    found = instances("thalweg.data.formats", FileFormat)
    found = sorted(found, key=lambda each: (-len(each.holds), each.holds[0] == "image"))
    return by_name((suffix, each) for each in found for suffix in each.suffixes)


def suffixes(kind: Kind | None = None) -> list[str]:
    """The endings of the files that can hold rows of a kind; of all files of numbers or pixels without one."""
    wanted = {"image", "vector"} if kind is None else {kind}
    return [suffix for suffix, each in formats().items() if wanted & {*each.holds}]


def format_of(path: Path) -> FileFormat | None:
    """The kind of file that a name's ending says; None for an ending that nobody knows."""
    return formats().get(path.suffix.lower())


def check_dtype(dtype: np.dtype, where: str) -> None:
    """UserError for an array that does not hold real numbers."""
    if dtype.hasobject:
        hint = "save float32 or uint8"
        raise UserError("holds Python objects, and pickles are not opened", argument=where, hint=hint)
    if dtype.kind not in "fiub":
        hint = "save it as float32 or uint8"
        raise UserError(f"must hold real numbers, not dtype {dtype}", argument=where, hint=hint)


def check_size(num_bytes: int, where: str) -> None:
    """UserError for more bytes than are read at once."""
    if num_bytes > LIMIT_BYTES:
        condition = f"must be at most {LIMIT_BYTES / 2**30:g} GiB, and declares {num_bytes / 2**30:.1f} GiB"
        raise UserError(condition, argument=where, hint="split it")


@contextmanager
def reading_array(path: Path | str) -> Iterator[None]:
    """Turn whatever a reader of arrays or images raises on this file into one line."""
    try:
        yield
    except ThalwegError:
        raise
    except PermissionError as error:
        hint = "change its mode or its owner"
        raise UserError("no permission to read it", argument=str(path), hint=hint) from error
    except _DAMAGED as error:
        why = STREAM.sub("", " ".join(str(error).split()))[:200] or type(error).__name__
        what = f"damaged or not what its name says ({why})"
        raise DamagedFile(what, argument=str(path), hint="fetch it again") from error


@contextmanager
def reading_table(path: Path, data: bytes | None = None) -> Iterator[None]:
    """The same for a reader of tables, some of whose faults have a remedy of their own. `data`: as of `Table`."""
    import pyarrow as pa

    where = str(path)
    try:
        yield
    except (ThalwegError, GeneratorExit):
        raise
    except PermissionError as error:
        raise UserError("no permission to read it", argument=where, hint="change its mode or its owner") from error
    except (UnicodeDecodeError, pa.ArrowException, csv.Error, OSError, EOFError) as error:
        why = " ".join(str(error).split())[:200]
        start = _start(path) if data is None else data[:4]
        kind = _packed(start)
        if kind:
            hint = "unpack it and give the table in it"
            raise UserError(f"compressed ({kind})", argument=where, hint=hint) from error
        if isinstance(error, UnicodeDecodeError) or "UTF8" in why:
            hint = "it is Parquet, so name it .parquet" if start == b"PAR1" else EXPECTED
            raise UserError("not UTF-8 text", argument=where, hint=hint) from error
        if "CSV parse error: Expected" in why or "CSV parse error: Row" in why:
            line = why.partition("CSV parse error: ")[2].replace("Row #", "line ")
            what = f"a line has too many or too few values ({line})"
            raise UserError(what, argument=where, hint="mend the line") from error
        what = f"damaged or not what its name says ({why})"
        raise DamagedFile(what, argument=where, hint="fetch it again") from error


def packed(path: Path) -> str | None:
    """The name of the compression that a file's first bytes tell."""
    return _packed(_start(path))


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _packed(start: bytes) -> str | None:
    return next((name for magic, name in PACKED.items() if start.startswith(magic)), None)
