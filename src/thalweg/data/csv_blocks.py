"""Tables in files, block by block: what is larger than memory is read and scored a part at a time.

A CSV is read as text, since a block cannot know what later ones hold: what a column is, is settled by
`data.columns.encoding`. Whether its first line names the columns is settled by `data.csv_header`.
"""

import csv
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.core.errors import DamagedFile, ThalwegError, UserError
from thalweg.data.columns.encoding import check_names
from thalweg.data.csv_header import EXPECTED, Known, check_separator, is_header

BLOCK_BYTES = 4 << 20  # of a CSV
BLOCK_ROWS = 32_768
BUFFER_BYTES = 1 << 20  # of a Parquet column, which else is read whole, however long its row group
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7z": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip or xlsx",
}


@dataclass(frozen=True)
class Table:
    """A CSV or Parquet file: its path and the names of its columns, 0, 1, 2, … where no header names them."""

    path: Path
    names: list[str]
    headless: bool = False
    empty: bool = False  # a header only

    @property
    def is_text(self) -> bool:
        """Whether values come as texts."""
        return self.path.suffix.lower() == ".csv"

    @property
    def num_bytes(self) -> int:
        """About what the whole table takes: the size of a CSV, eight bytes a value of Parquet."""
        if self.is_text:
            return self.path.stat().st_size
        from pyarrow import parquet

        with _reading(self.path):
            about = parquet.read_metadata(self.path)
        return about.num_rows * about.num_columns * 8

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
        with _reading(self.path):
            for batch in self._csv(names) if self.is_text else self._parquet(names):
                for start in range(0, batch.num_rows, BLOCK_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, BLOCK_ROWS)])

    def _csv(self, names: list[str]) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import csv as arrow

        if self.empty:
            return
        last = self.names[-1]
        reader = arrow.open_csv(
            self.path,
            arrow.ReadOptions(
                block_size=BLOCK_BYTES, use_threads=False, column_names=self.names, skip_rows=0 if self.headless else 1
            ),
            arrow.ParseOptions(newlines_in_values=True),
            arrow.ConvertOptions(
                column_types={name: pa.string() for name in self.names},
                include_columns=[*names, *([] if last in names else [last])],
                strings_can_be_null=False,  # `data.columns.reading_options` says which words mean a missing value
            ),
        )
        end = None
        for batch in reader:
            if batch.num_rows:
                end = batch[last][-1].as_py()
            yield batch.select(names)
        if end is not None and _unclosed(self.path, end):
            raise UserError(
                "a quotation mark near the end is never closed",
                argument=str(self.path),
                hint="the file is cut or damaged",
            )

    def _parquet(self, names: list[str]) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path, buffer_size=BUFFER_BYTES, page_checksum_verification=True) as file:
            yield from file.iter_batches(batch_size=BLOCK_ROWS, columns=names, use_threads=False)


def open_table(path: str | Path, *, header: bool | None = None, known: Known | None = None) -> Table:
    """The table in a file, its header read and checked.

    `header`: whether the first line of a CSV names the columns; where it is not given the lines must tell, or what is
    `known` by a model. UserError: no file, a folder, an empty file, another kind, one name twice, a first line that
    could be either.
    """
    path = Path(path)
    where, suffix = str(path), path.suffix.lower()
    if path.is_dir():
        raise UserError("a folder, where a table was wanted", argument=where, hint="give a .csv or .parquet file")
    if not path.exists():
        raise UserError("no such file", argument=where, hint="check the spelling and the working directory")
    if suffix not in (".csv", ".parquet"):
        packed = _packed(path) if suffix != ".xlsx" else None
        hint = f"it is compressed ({packed}), so unpack it" if packed else EXPECTED
        raise UserError(f"{path.suffix or 'no ending'}: a table is .csv or .parquet", argument=where, hint=hint)
    if not path.stat().st_size:
        raise UserError("an empty file", argument=where, hint="give one with a header and rows")
    if suffix == ".parquet" and header is not None:
        hint = f"leave out --{'' if header else 'no-'}header"
        raise UserError("Parquet holds the names of its columns", argument=where, hint=hint)
    with _reading(path):
        table = _csv_table(path, header, known or Known()) if suffix == ".csv" else _schema(path)
    check_names(table.names, where)
    if not table.names:
        raise UserError("no columns", argument=where, hint="give a table with at least one")
    return table


def _unclosed(path: Path, end: str) -> bool:
    """Whether the last value, `end`, was opened by a quotation mark that nothing closes: it then runs to the end."""
    opened = b'"' + end.replace('"', '""').encode().rstrip(b"\r\n")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(opened) - 16))
        rest = file.read().rstrip(b"\r\n")
    return rest.endswith(opened) and rest[: -len(opened)][-1:] in (b",", b"\n", b"")


def _csv_table(path: Path, header: bool | None, known: Known) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        first = next(reader, [])
        try:
            second = next((line for line in reader if line), None)
        except csv.Error:  # a quotation mark that nothing closes, which the blocks tell
            second = []
    if not first:
        return Table(path, [])
    check_separator(path, first, second or [])
    named = is_header(path, first, second or [], known) if header is None else header
    names = first if named else [str(i) for i in range(len(first))]
    return Table(path, names, headless=not named, empty=named and second is None)


def _schema(path: Path) -> Table:
    from pyarrow import parquet

    return Table(path, list(parquet.read_schema(path).names))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on this file into one line."""
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
        kind = _packed(path)
        if kind:
            hint = "unpack it and give the table in it"
            raise UserError(f"compressed ({kind})", argument=where, hint=hint) from error
        if isinstance(error, UnicodeDecodeError) or "UTF8" in why:
            with path.open("rb") as file:
                is_parquet = file.read(4) == b"PAR1"
            hint = "it is Parquet, so name it .parquet" if is_parquet else EXPECTED
            raise UserError("not UTF-8 text", argument=where, hint=hint) from error
        if "CSV parse error: Expected" in why or "CSV parse error: Row" in why:
            line = why.partition("CSV parse error: ")[2].replace("Row #", "line ")
            what = f"a line has too many or too few values ({line})"
            raise UserError(what, argument=where, hint="mend the line") from error
        what = f"damaged or not what its name says ({why})"
        raise DamagedFile(what, argument=where, hint="fetch it again") from error


def _packed(path: Path) -> str | None:
    """The name of the compression that a file's first bytes tell."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in PACKED.items() if start.startswith(magic)), None)
