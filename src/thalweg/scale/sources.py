"""Files of rows that are read a block at a time: Parquet, CSV and npy, at any address."""

import hashlib
import io
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from thalweg.core.errors import DamagedFile, ThalwegError, UserError, one_line, row_from_zero
from thalweg.data.csv_header import EXPECTED, Known
from thalweg.data.formats.base import BLOCK_ROWS
from thalweg.data.formats.npy import check_header
from thalweg.data.tables import open_table
from thalweg.scale import addresses
from thalweg.scale.csv_offsets import Offsets, end_of_row, offsets

HEAD = 1 << 20  # bytes of a CSV in which its first two lines must end
MAX_FOOTER = 256 << 20
MAX_ARROW_BLOCK = 2**31 - 1  # bytes
ROW_OF_CSV = re.compile(r"Row #(\d+): (.*)")  # in what Arrow says, counted from 1 without blank lines


class FileFacts(NamedTuple):
    """What a file is known by.

    Args:
        rows: Their number.
        sha256: Of what was read to count them: a CSV as a whole, the footer of Parquet, the header of npy.
        starts: Of a CSV the byte offset of each block, and the end.
    """

    rows: int
    sha256: str
    starts: tuple[int, ...] = ()


class Source(ABC):
    """Abstract: a file of rows. `names` of its columns, `headless` where they are 0, 1, …; none of an array.

    Args:
        address: As messages and the output name it.
        path: What is opened: the same without a place that depends on the folder one works in.
    """

    is_text: ClassVar[bool] = False  # whether values come as texts
    whole: ClassVar[bool] = False  # whether the hash is of the whole file

    def __init__(self, address: str, path: str):
        self.address, self.path = address, path
        self.names: list[str] = []
        self.headless = False

    @abstractmethod
    def examine(self, step: int) -> FileFacts:
        """Count the rows, in one pass over what that needs; blocks are to be of `step` rows."""

    def first_row(self, span: tuple[int, int]) -> tuple[int, int]:
        """Where the first one of the rows lies that lie in a span."""
        return span

    @abstractmethod
    def read(self, first: int, rows: int, names: Sequence[str], span: tuple[int, int]) -> Any:
        """Rows first, first + 1, …: an Arrow table of these columns, or an array.

        `span`: of a CSV, where they lie in the file.
        """


class ParquetSource(Source):
    """Rows of typed values, of which only the row groups that a block needs are read."""

    def __init__(self, address: str, path: str):
        super().__init__(address, path)
        with self._open() as file:
            self.names, self._rows = list(file.schema_arrow.names), file.metadata.num_rows

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from pyarrow import parquet

        remote = addresses.is_remote(self.path)
        # Read ahead, whole row groups are in memory. It pays where each request waits for a network.
        how = {"buffer_size": HEAD, "page_checksum_verification": True, "pre_buffer": remote}
        with (
            damaged(self.address),
            addresses.opened(self.path, self.address) as stream,
            parquet.ParquetFile(stream if remote else self.path, **how) as file,
        ):
            yield file

    def examine(self, step: int) -> FileFacts:
        with damaged(self.address), addresses.opened(self.path, self.address) as file:
            file.seek(-8, io.SEEK_END)
            size = int.from_bytes(file.read(4), "little")
            if size > min(MAX_FOOTER, file.tell()):
                raise DamagedFile("declares a footer that it has no room for", argument=self.address)
            file.seek(-8 - size, io.SEEK_END)
            return FileFacts(self._rows, hashlib.sha256(file.read(size)).hexdigest())

    def read(self, first: int, rows: int, names: Sequence[str], span: tuple[int, int]) -> Any:
        import pyarrow as pa

        with self._open() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            ends = np.cumsum(sizes)
            low, high = np.searchsorted(ends, [first, first + rows - 1], "right").tolist()
            groups = range(low, high + 1)
            skip, kept, wanted = first - int(ends[groups[0]] - sizes[groups[0]]), [], rows
            for batch in file.iter_batches(BLOCK_ROWS, row_groups=[*groups], columns=list(names), use_threads=False):
                part = batch.slice(skip, wanted)
                skip = max(0, skip - batch.num_rows)
                wanted -= part.num_rows
                kept += [part] if part.num_rows else []
                if not wanted:
                    break
            return pa.Table.from_batches(kept).select(list(names))


class CsvSource(Source):
    """Rows of texts, which begin at byte offsets that one pass has found. `known`: what a model knows of its tables."""

    is_text, whole = True, True

    def __init__(self, address: str, path: str, *, header: bool | None, known: Known):
        super().__init__(address, path)
        with _head(path) as head:
            try:
                table = open_table(head, header=header, known=known)
            except UserError as error:
                raise error.replace(argument=address) if error.argument == str(head) else error from error
        self.names, self.headless = table.names, table.headless

    def examine(self, step: int) -> FileFacts:
        with damaged(self.address), addresses.opened(self.path, self.address) as file:
            found: Offsets = offsets(file, step, headless=self.headless, where=self.address)
            return FileFacts(found.rows, found.sha256, found.starts)

    def first_row(self, span: tuple[int, int]) -> tuple[int, int]:
        with damaged(self.address), addresses.opened(self.path, self.address) as file:
            file.seek(span[0])
            return span[0], span[0] + end_of_row(file, self.address)

    def read(self, first: int, rows: int, names: Sequence[str], span: tuple[int, int]) -> Any:
        import pyarrow as pa
        from pyarrow import csv

        with damaged(self.address), _naming_rows(self.address, first):
            with addresses.opened(self.path, self.address) as file:
                file.seek(span[0])
                data = file.read(span[1] - span[0]).removeprefix(b"\xef\xbb\xbf" if not first else b"")
            whole = min(max(len(data), 1), MAX_ARROW_BLOCK)  # Arrow wants each row within one of its blocks
            table = csv.read_csv(
                pa.BufferReader(data),
                csv.ReadOptions(use_threads=False, column_names=self.names, block_size=whole),
                csv.ParseOptions(newlines_in_values=True),
                csv.ConvertOptions(column_types={name: pa.string() for name in self.names}, strings_can_be_null=False),
            )
            return table.slice(0, rows).select(list(names))


@contextmanager
def _naming_rows(address: str, first: int) -> Iterator[None]:
    """Say which row of the file it is that Arrow cannot read in a block of a CSV; the block's first row is `first`."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowInvalid as error:
        found = ROW_OF_CSV.search(one_line(error))
        if found is None:
            raise
        row = row_from_zero(first + int(found[1]) - 1)
        if "UTF8" in found[2]:
            raise UserError(f"not UTF-8 text in {row}", argument=address, hint=EXPECTED) from error
        text = f"a line has too many or too few values ({row}: {found[2]})"
        raise UserError(text, argument=address, hint="mend the line") from error


@contextmanager
def _head(path: str) -> Iterator[Path]:
    """A file of this machine that begins as the one at an address does, with whole lines."""
    if not addresses.is_remote(path):
        yield Path(path)
        return
    with addresses.opened(path) as file, tempfile.TemporaryDirectory() as folder:
        data = file.read(HEAD)
        head = Path(folder) / "head.csv"
        head.write_bytes(data[: data.rfind(b"\n") + 1] if len(data) == HEAD else data)
        yield head


class NpySource(Source):
    """Rows of one array of numbers."""

    def __init__(self, address: str, path: str):
        super().__init__(address, path)
        size, _ = addresses.stat(path)
        with damaged(address), addresses.opened(path, address) as file:
            check_header(file, size, address, at_once=False)
            self._start = file.tell()
            file.seek(0)
            self._head = file.read(self._start)
            file.seek(0)
            read = np.lib.format.read_array_header_1_0
            read = read if np.lib.format.read_magic(file) == (1, 0) else np.lib.format.read_array_header_2_0
            self._shape, by_column, self._dtype = read(file)
        if len(self._shape) < 2 or by_column:
            wanted = "must be rows (N, …) in C order"
            raise UserError(wanted, argument=address, hint="save numpy.ascontiguousarray(x)")

    def examine(self, step: int) -> FileFacts:
        return FileFacts(self._shape[0], hashlib.sha256(self._head).hexdigest())

    def read(self, first: int, rows: int, names: Sequence[str], span: tuple[int, int]) -> Any:
        row = self._shape[1:]
        size = int(np.prod(row, dtype=np.int64)) * self._dtype.itemsize
        with damaged(self.address), addresses.opened(self.path, self.address) as file:
            file.seek(self._start + first * size)
            return np.frombuffer(bytearray(file.read(rows * size)), self._dtype).reshape(rows, *row)


KINDS = (".parquet", ".csv", ".npy")


def rows_digest(rows: Any) -> str:
    """SHA-256 of the rows that a source gave: names, types and values."""
    import pyarrow as pa

    if isinstance(rows, np.ndarray):
        return hashlib.sha256(f"{rows.shape} {rows.dtype.str}".encode() + rows.tobytes()).hexdigest()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema.remove_metadata()) as stream:
        stream.write_table(rows.replace_schema_metadata(None).combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def source_of(address: str, path: str, *, header: bool | None, known: Known) -> Source:
    """The file at an address, its header read. UserError where it cannot be read, or is of another kind.

    For a CSV alone: `header`, whether the first line names the columns; `known`, what a model knows of its tables.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in KINDS:
        raise UserError(f"must end in {', '.join(KINDS)}", argument=address)
    if suffix == ".csv":
        return CsvSource(address, path, header=header, known=known)
    return ParquetSource(address, path) if suffix == ".parquet" else NpySource(address, path)


@contextmanager
def damaged(where: str) -> Iterator[None]:
    """Turn what a reader raises on a file into one line."""
    import csv

    import pyarrow as pa

    try:
        yield
    except ThalwegError:
        raise
    except PermissionError as error:
        raise UserError("no permission to read it", argument=where, hint="change its mode or its owner") from error
    except FileNotFoundError as error:
        raise UserError("no such file", argument=where, hint="check the spelling") from error
    except (pa.ArrowException, csv.Error, OSError, EOFError, ValueError) as error:
        what = f"damaged or not what its name says ({one_line(error)})"
        raise DamagedFile(what, argument=where, hint="fetch it again") from error
