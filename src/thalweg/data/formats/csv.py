"""CSV, read as text, since a block cannot know what later ones hold: what a column is, `data.columns.encoding` settles.

Whether the first line names the columns is settled by `data.csv_header`.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thalweg.core.errors import UserError, row_from_zero
from thalweg.data.csv_header import Known, check_separator, is_header
from thalweg.data.formats.base import Table, TableFormat

BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class CsvTable(Table):
    """Rows of texts; `empty`: a header only."""

    empty: bool = False

    is_text = True

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.data is None else len(self.data)

    def row_names(self, rows: Sequence[int]) -> list[str]:
        """The line in which each row begins, as an editor counts it: blank lines are none, a row may take several."""
        found: list[str] = []
        with _lines(self.path, self.data) as file:
            reader, begins, number = csv.reader(file), 1, 0 if self.headless else -1
            for cells in reader:
                if len(found) == len(rows):
                    break
                if cells and number == rows[len(found)]:
                    found.append(f"line {begins}")
                number, begins = number + bool(cells), reader.line_num + 1
        return [*found, *map(row_from_zero, rows[len(found) :])]

    def batches(self, names: list[str]) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import csv as arrow

        if self.empty:
            return
        last = self.names[-1]
        reader = arrow.open_csv(
            self.path if self.data is None else pa.BufferReader(self.data),
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
        if end is not None and _unclosed(_opened(self.path, self.data), end):
            raise UserError(
                "a quotation mark near the end is never closed",
                argument=str(self.path),
                hint="the file is cut or damaged",
            )


class Csv(TableFormat):
    """Text of one line a row, with commas between the values."""

    suffixes = (".csv",)
    takes_header = True

    def open(self, path: Path, header: bool | None, known: Known) -> CsvTable:
        """The table, by its first two lines."""
        return csv_table(path, None, header, known)


def csv_table(path: Path, data: bytes | None, header: bool | None, known: Known) -> CsvTable:
    """The table of a file, or of its bytes where they are in memory, by its first two lines."""
    with _lines(path, data) as file:
        reader = csv.reader(file)
        first = next(reader, [])
        try:
            second = next((line for line in reader if line), None)
        except csv.Error:  # a quotation mark that nothing closes, which the blocks tell
            second = []
    if not first:
        return CsvTable(path, [])
    check_separator(path, first, second or [])
    named = is_header(path, first, second or [], known) if header is None else header
    names = first if named else [str(i) for i in range(len(first))]
    return CsvTable(path, names, headless=not named, data=data, empty=named and second is None)


def _opened(path: Path, data: bytes | None) -> IO[bytes]:
    return path.open("rb") if data is None else io.BytesIO(data)


def _lines(path: Path, data: bytes | None) -> IO[str]:
    return io.TextIOWrapper(_opened(path, data), encoding="utf-8-sig", newline="")


def _unclosed(file: IO[bytes], end: str) -> bool:
    """Whether the last value, `end`, was opened by a quotation mark that nothing closes: it then runs to the end."""
    opened = b'"' + end.replace('"', '""').encode().rstrip(b"\r\n")
    with file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - len(opened) - 16))
        rest = file.read().rstrip(b"\r\n")
    return rest.endswith(opened) and rest[: -len(opened)][-1:] in (b",", b"\n", b"")
