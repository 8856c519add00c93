"""Tables in files, block by block: what is larger than memory is read, scored and written a part at a time.

A CSV is read as text, since a block cannot know what later ones hold: what a column is was settled by the fit. Whether
its first line names the columns is settled by `data.csv_header`.
"""

import csv
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from thalweg.core.errors import DamagedFile, ThalwegError, UserError
from thalweg.data.columns import check_names
from thalweg.data.csv_header import Known, by_pandas, check_separator, is_header
from thalweg.data.reading import NA_WORDS

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
MISSING_WORDS = ("", *NA_WORDS)  # values of a CSV that are none


@dataclass(frozen=True)
class Table:
    """A CSV or Parquet file: its path and the names of its columns, 0, 1, 2, … where no header names them."""

    path: Path
    names: list[str]
    headless: bool = False
    empty: bool = False  # a header only
    missing_words: Sequence[str] = MISSING_WORDS

    @property
    def is_text(self) -> bool:
        """Whether values come as texts."""
        return self.path.suffix.lower() == ".csv"

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
                null_values=list(self.missing_words),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        end = None
        for batch in reader:
            if batch.num_rows:
                end = batch[last][-1].as_py()
            yield batch.select(names)
        if end is not None and _unclosed(self.path, end):
            raise UserError(f"{self.path}: a quotation mark near the end is never closed; the file is cut or damaged")

    def _parquet(self, names: list[str]) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path, buffer_size=BUFFER_BYTES, page_checksum_verification=True) as file:
            yield from file.iter_batches(batch_size=BLOCK_ROWS, columns=names, use_threads=False)


def open_table(
    path: str | Path,
    *,
    header: bool | None = None,
    known: Known | None = None,
    missing_words: Sequence[str] = MISSING_WORDS,
) -> Table:
    """The table in a file, its header read and checked. `missing_words`: the texts of a CSV that mean a missing value.

    `header`: whether the first line of a CSV names the columns; where it is not given the lines must tell, or what is
    `known` by a fit. UserError: no file, a folder, an empty file, another kind, one name
    twice, a first line that could be either.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder, where a table was wanted; give a .csv or .parquet file")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the spelling and the working directory")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{path}: {path.suffix or 'no ending'}: a table is .csv or .parquet; {_other_kind(path)}")
    if not path.stat().st_size:
        raise UserError(f"{path}: an empty file; give one with a header and rows")
    require_arrow()
    if path.suffix.lower() == ".csv":
        with _reading(path):
            table = _csv_table(path, header, known or Known(), missing_words)
    elif header is not None:
        raise UserError(f"{path}: Parquet holds the names of its columns; leave out --{'' if header else 'no-'}header")
    else:
        with _reading(path):
            table = _schema(path)
    check_names(table.names, str(path))
    if not table.names:
        raise UserError(f"{path}: no columns; give a table with at least one")
    return table


def require_arrow() -> None:
    """UserError where pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError("tables in files need pyarrow: pip install 'thalweg[tables]'") from error


class Writer(Protocol):
    """What takes blocks of a score table, Arrow tables of one schema."""

    def write(self, block: Any) -> None: ...
    def close(self) -> None: ...


def writer(file: IO[bytes], suffix: str, schema: Any) -> Writer:
    """A writer of CSV or Parquet into an open file."""
    require_arrow()
    from pyarrow import csv as arrow
    from pyarrow import parquet

    if suffix == ".parquet":
        return parquet.ParquetWriter(file, schema)
    return arrow.CSVWriter(file, schema, write_options=arrow.WriteOptions(quoting_style="needed"))


def _unclosed(path: Path, end: str) -> bool:
    """Whether the last value, `end`, was opened by a quotation mark that nothing closes: it then runs to the end."""
    opened = b'"' + end.replace('"', '""').encode().rstrip(b"\r\n")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(opened) - 16))
        rest = file.read().rstrip(b"\r\n")
    return rest.endswith(opened) and rest[: -len(opened)][-1:] in (b",", b"\n", b"")


def _csv_table(path: Path, header: bool | None, known: Known, missing_words: Sequence[str]) -> Table:
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
    named = is_header(path, first, second or [], missing_words or MISSING_WORDS, known) if header is None else header
    names = first if named else [str(i) for i in range(len(first))]
    return Table(path, names, headless=not named, empty=named and second is None, missing_words=missing_words)


def _schema(path: Path) -> Table:
    from pyarrow import parquet

    return Table(path, list(parquet.read_schema(path).names))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on this file into one line."""
    import pyarrow as pa

    try:
        yield
    except (ThalwegError, GeneratorExit):
        raise
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read it; change its mode or its owner") from error
    except (UnicodeDecodeError, pa.ArrowException, csv.Error, OSError, EOFError) as error:
        why = " ".join(str(error).split())[:200]
        kind = _packed(path)
        if kind:
            raise UserError(f"{path}: compressed ({kind}); unpack it and give the table in it") from error
        if isinstance(error, UnicodeDecodeError) or "UTF8" in why:
            raise UserError(f"{path}: not UTF-8 text; {_converted(path)}") from error
        if "CSV parse error: Expected" in why or "CSV parse error: Row" in why:
            line = why.partition("CSV parse error: ")[2].replace("Row #", "line ")
            raise UserError(f"{path}: a line has too many or too few values ({line}); mend the line") from error
        raise DamagedFile(f"{path}: damaged or not what its name says ({why}); fetch it again") from error


def _converted(path: Path) -> str:
    """How to make UTF-8 text of a file, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        return "it is Parquet, so name it .parquet"
    kind = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
    return f"convert it, as in: iconv -f {kind} -t utf-8"


def _packed(path: Path) -> str | None:
    """The name of the compression that a file's first bytes tell."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in PACKED.items() if start.startswith(magic)), None)


def _other_kind(path: Path) -> str:
    """How to make a CSV of a file of another kind, by its first bytes and its ending."""
    kind = _packed(path)
    if kind and path.suffix.lower() != ".xlsx":
        return f"it is compressed ({kind}), so unpack it"
    read = {
        ".tsv": ("csv", ", sep='\\t'"), ".tab": ("csv", ", sep='\\t'"), ".xlsx": ("excel", ""), ".xls": ("excel", ""),
        ".txt": ("csv", ", sep=None, engine='python'"), ".feather": ("feather", ""), ".json": ("json", ""),
    }.get(path.suffix.lower())  # fmt: skip
    return "convert it" if read is None else f"convert it, as in: {by_pandas(path, *read)}"
