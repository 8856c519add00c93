"""Tables of numbers in Parquet that stay on disk: read by pieces of row groups, by the one reader of tables."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import ROW, UserError
from thalweg.data.columns.layout import Layout
from thalweg.data.files import LARGEST
from thalweg.data.stored.row_groups import RowGroups
from thalweg.data.stored_rows import EpochOrder, Rows, StoredRows, hash_file
from thalweg.data.tables import open_table
from thalweg.data.validate import check_cells


class ParquetTableRows(StoredRows):
    """The rows of a table, float64 (N, D). What the columns hold is learned from the first piece; all are checked.

    Args:
        path: A Parquet file.
        drop: Columns that are left out.
    """

    dtype = torch.float64

    def __init__(self, path: Path, drop: Sequence[str] = ()):
        self.path = path
        table = open_table(path)
        table.require(drop)
        names = [name for name in table.names if name not in drop]
        self._groups = RowGroups([path], names, 8 * len(names), lambda table, _: table)
        self.layout = Layout.fit(self._groups.piece(0), where=str(path), ignored=drop)
        self._groups = RowGroups([path], names, 8 * len(names), self._encoded)
        width = self._groups.piece(0).shape[1]
        self.shape = torch.Size([self._groups.num_rows, width])
        for i in range(len(self._groups.pieces)):
            self._groups.piece(i)  # checks it

    def read(self, rows: Tensor) -> Tensor:
        """Piece by piece."""
        x = torch.empty(len(rows), self.shape[1], dtype=self.dtype)
        for piece, places, inside in self._groups.of(rows):
            x[places] = piece[inside]
        return x

    def digest(self) -> str:
        """Of the file's bytes, and of the columns that are left out."""
        digest = hashlib.sha256(" ".join(self.layout.ignored).encode())
        hash_file(self.path, digest)
        return digest.hexdigest()

    def order(self, rows: Rows, seed: int, epoch: int) -> EpochOrder:
        """Row groups are shuffled, then the rows of some at a time (`row_groups`)."""
        return self._groups.order(rows.before, seed, epoch)

    def _encoded(self, table: Any, first: int) -> Tensor:
        where = str(self.path)
        x = self.layout.encode(table, where=where, first=first)
        names = self.layout.owners or [str(i) for i in range(x.shape[1])]
        check_cells(x, names, where, rows=range(first, first + len(x)), largest=LARGEST)
        self._refuse_new(x, names, first)
        return torch.from_numpy(np.ascontiguousarray(x))

    def _refuse_new(self, x: np.ndarray, names: Sequence[str], first: int) -> None:
        """UserError for a category that the first piece does not have, where none of its columns stands for others."""
        known = self.layout.categories
        new = (x == -1) & np.isin(names, known)
        if new.any():
            row, column = (int(i) for i in np.argwhere(new)[0])
            text = f"column {names[column]!r} has a new category in {ROW}"
            hint = "shuffle the rows of the file, so that its first rows have all categories"
            raise UserError(text, argument=str(self.path), hint=hint, row=first + row)
