"""Parquet, whose columns have names and types of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thalweg.data.csv_header import Known
from thalweg.data.formats.base import BLOCK_ROWS, Table, TableFormat, reading_table

BUFFER_BYTES = 1 << 20  # of a column, which else is read whole, however long its row group


class ParquetTable(Table):
    """Rows of typed values."""

    @property
    def num_bytes(self) -> int:
        from pyarrow import parquet

        with reading_table(self.path):
            about = parquet.read_metadata(self.path)
        return about.num_rows * about.num_columns * 8

    def batches(self, names: list[str]) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(
            self.path, buffer_size=BUFFER_BYTES, page_checksum_verification=True, pre_buffer=False
        ) as file:
            yield from file.iter_batches(batch_size=BLOCK_ROWS, columns=names, use_threads=False)


class Parquet(TableFormat):
    """Apache Parquet."""

    suffixes = (".parquet",)

    def open(self, path: Path, header: bool | None, known: Known) -> ParquetTable:
        """The table, by its schema."""
        from pyarrow import parquet

        return ParquetTable(path, list(parquet.read_schema(path).names))
