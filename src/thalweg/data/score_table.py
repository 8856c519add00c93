"""Tables of scores and of samples as CSV or Parquet files, written block by block."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from thalweg.core.atomic_write import whole_file, write_array
from thalweg.core.errors import UserError

KINDS = (".csv", ".parquet")


class Writer(Protocol):
    """Writes a table block by block; the blocks are Arrow tables of one schema."""

    def write(self, block: Any, /) -> None: ...
    def close(self) -> None: ...


def writer(file: IO[bytes], suffix: str, schema: Any) -> Writer:
    """A writer of CSV or Parquet into an open file; UserError for another ending."""
    if suffix == ".parquet":
        from pyarrow import parquet

        return parquet.ParquetWriter(file, schema)
    if suffix == ".csv":
        return _CsvWriter(file, schema.names)
    raise UserError(f"cannot write {suffix or 'a file without suffix'}", hint=f"want {' or '.join(KINDS)}")


class _CsvWriter:
    """Numbers by the shortest text that is read back as the same bits; an empty field for None."""

    def __init__(self, file: IO[bytes], names: Sequence[str]):
        self.file = file
        self._lines([names])

    def write(self, block: Any) -> None:
        self._lines(zip(*(column.to_pylist() for column in block.columns), strict=True))

    def close(self) -> None:
        """Nothing: the file is its opener's to close."""

    def _lines(self, rows: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        self.file.write(text.getvalue().encode())


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of one length (lists, arrays, tensors of one axis), by the ending of `path`."""
    import pyarrow as pa

    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    with whole_file(path) as file:
        out = writer(file, path.suffix.lower(), table.schema)
        out.write(table)
        out.close()


def write_scores(path: Path, names: list[str], scores: Mapping[str, Any], *, heading: str = "name") -> None:
    """Write name, energy, log_prob, p_value and flag (those there are); .npy holds the energies alone.

    `heading`: of the first column, which has the names.
    """
    if path.suffix.lower() == ".npy":
        write_array(path, scores["energy"])
    else:
        write_table(path, {heading: names, **scores})


def _arrow(values: Any) -> Any:
    import pyarrow as pa

    if not isinstance(values, list | tuple):
        return pa.array(values.tolist())  # float32 as the float64 of the same number
    return pa.array([v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for v in values])
