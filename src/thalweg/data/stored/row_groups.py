"""The row groups of Parquet files, read a piece at a time, and an order of epochs that keeps such pieces together.

A *piece* is a row group, or of a larger one consecutive rows of at most `PIECE_BYTES`. An epoch visits the row groups
in a random order; its pieces, in that order, fill *windows* of about `WINDOW_BYTES`, and the rows of a window are
shuffled. So each row comes once an epoch, and memory does not grow with the file or its row groups. Both draws have an
address, (seed, "shuffle", epoch) and (seed, "shuffle-window", epoch and window): a step has the same rows always.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.data.formats.base import reading_table
from thalweg.data.formats.parquet import BUFFER_BYTES
from thalweg.data.stored_rows import UnchangedFiles

PIECE_BYTES, WINDOW_BYTES = 16 << 20, 64 << 20
KEPT_PIECES = 3 * WINDOW_BYTES  # bytes of pieces that are kept, the last used ones: steps are read ahead over a border
BATCH_ROWS = 4096  # that Arrow decodes at a time, at most


class RowGroupPiece(NamedTuple):
    """Consecutive rows of a row group."""

    file: int
    group: int
    first: int  # in the group
    start: int  # of all files
    rows: int
    nbytes: int


class RowGroups:
    """Pieces of the row groups of files, read in any order; fast where it is that of the file within a group.

    Args:
        files: Parquet files of one schema.
        columns: The columns that are read.
        row_bytes: The least that a row of these takes once it is read.
        read_as: What is kept of a piece: an Arrow table and the number of its first row to anything.
    """

    def __init__(
        self, files: Sequence[Path], columns: Sequence[str], row_bytes: int, read_as: Callable[[Any, int], Any]
    ):
        self.files, self.columns, self.read_as = [*files], [*columns], read_as
        self.unchanged = UnchangedFiles(self.files)
        self.pieces = [*self._pieces(row_bytes)]
        self.starts = torch.tensor([piece.start for piece in self.pieces], dtype=torch.int64)
        self.num_rows = sum(piece.rows for piece in self.pieces)
        self._lock = RLock()
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._open: GroupReader | None = None  # of the last piece, which the next one may follow

    def piece(self, i: int) -> Any:
        """Piece i, as `read_as` makes it; the last used ones are kept."""
        with self._lock:
            if i not in self._kept:
                found = self.pieces[i]
                self.unchanged.require(found.file)
                with reading_table(self.files[found.file]):
                    self._kept[i] = self.read_as(self._table(found), found.start)
                while sum(self.pieces[k].nbytes for k in self._kept) > KEPT_PIECES and len(self._kept) > 1:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(i)
            return self._kept[i]

    def of(self, rows: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """The pieces with these rows, in the files' order: (piece, which of `rows` it has, where they are in it)."""
        where = torch.searchsorted(self.starts, rows, right=True) - 1
        order = where.argsort(stable=True)
        ids, counts = where[order].unique_consecutive(return_counts=True)
        for i, places in zip(ids.tolist(), order.split(counts.tolist()), strict=True):
            yield self.piece(i), places, rows[places] - self.pieces[i].start

    def order(self, before: Callable[[Tensor], Tensor], seed: int, epoch: int) -> "WindowOrder":
        """The order of an epoch over some rows; `before` says how many of them come before others."""
        groups: dict[tuple[int, int], list[RowGroupPiece]] = {}
        for piece in self.pieces:
            groups.setdefault((piece.file, piece.group), []).append(piece)
        shuffled = torch.randperm(len(groups), generator=generator(seed, "shuffle", epoch)).tolist()
        names = [*groups]
        windows: list[list[RowGroupPiece]] = [[]]
        for piece in (piece for i in shuffled for piece in groups[names[i]]):
            if windows[-1] and sum(other.nbytes for other in windows[-1]) + piece.nbytes > WINDOW_BYTES:
                windows.append([])
            windows[-1].append(piece)
        return WindowOrder(windows, before, seed, epoch)

    def _pieces(self, row_bytes: int) -> Iterator[RowGroupPiece]:
        from pyarrow import parquet

        start = 0
        for f, file in enumerate(self.files):
            with reading_table(file):
                about = parquet.read_metadata(file)
            for g in range(about.num_row_groups):
                group = about.row_group(g)
                stored = sum(
                    group.column(c).total_uncompressed_size
                    for c in range(group.num_columns)
                    if group.column(c).path_in_schema.partition(".")[0] in self.columns
                )
                each = max(row_bytes, stored // max(1, group.num_rows), 1)
                most = max(1, PIECE_BYTES // each)
                for first in range(0, group.num_rows, most):
                    rows = min(most, group.num_rows - first)
                    yield RowGroupPiece(f, g, first, start + first, rows, rows * each)
                start += group.num_rows

    def _table(self, piece: RowGroupPiece) -> Any:
        """The rows of a piece as an Arrow table; the group is read on where the piece before it was the last."""
        import pyarrow as pa

        reader = self._open
        if reader is None or (reader.file, reader.group) != piece[:2] or reader.place > piece.first:
            reader = GroupReader(piece.file, piece.group, self._batches(piece))
        self._open = None  # an error leaves none that goes on
        reader.skip(piece.first)
        table = pa.Table.from_batches(reader.take(piece.rows))
        self._open = reader
        return table

    def _batches(self, piece: RowGroupPiece) -> Iterator[Any]:
        from pyarrow import parquet

        size = max(1, min(BATCH_ROWS, PIECE_BYTES * piece.rows // max(1, piece.nbytes)))
        file = self.files[piece.file]
        with parquet.ParquetFile(
            file, buffer_size=BUFFER_BYTES, page_checksum_verification=True, pre_buffer=False
        ) as opened:
            yield from opened.iter_batches(
                batch_size=size, row_groups=[piece.group], columns=self.columns, use_threads=False
            )


class GroupReader:
    """Reads a row group on, in order. Of what was read it holds the rest of the last batch.

    Args:
        file: The number of the file.
        group: The number of the group in it.
        batches: Its batches, in order.
    """

    def __init__(self, file: int, group: int, batches: Iterator[Any]):
        self.file, self.group, self.place = file, group, 0
        self._batches, self._rest = batches, None

    def skip(self, row: int) -> None:
        """Go on to a row of the group, past those before it."""
        for _ in self.take(row - self.place):
            pass

    def take(self, rows: int) -> Iterator[Any]:
        """The next rows, in batches, as long as there are some."""
        while rows > 0:
            batch = next(self._batches, None) if self._rest is None else self._rest
            if batch is None:
                return
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            batch = batch.slice(0, rows)
            self.place, rows = self.place + batch.num_rows, rows - batch.num_rows
            yield batch


class WindowOrder:
    """The places of an epoch's rows: window by window, shuffled in each.

    Args:
        windows: The pieces of each window.
        before: How many of the rows that an epoch visits come before others, by their numbers.
        seed: Seed of the run.
        epoch: The epoch.
    """

    def __init__(
        self, windows: Sequence[Sequence[RowGroupPiece]], before: Callable[[Tensor], Tensor], seed: int, epoch: int
    ):
        self.seed, self.epoch, self.num_windows = seed, epoch, len(windows)
        pieces = [piece for window in windows for piece in window]
        starts = torch.tensor([piece.start for piece in pieces], dtype=torch.int64)
        sizes = torch.tensor([piece.rows for piece in pieces], dtype=torch.int64)
        self._first, self._last = before(starts), before(starts + sizes)  # places of each piece
        self._cuts = torch.tensor([0, *map(len, windows)]).cumsum(0).tolist()
        counts = torch.cat([torch.zeros(1, dtype=torch.int64), (self._last - self._first).cumsum(0)])
        self._ends = counts[self._cuts].tolist()  # where each window begins, and the last one ends
        self._lock, self._drawn = RLock(), OrderedDict[int, Tensor]()

    def __getitem__(self, places: slice) -> Tensor:
        """The places from one position of the epoch to another."""
        start, stop, _ = places.indices(self._ends[-1])
        found = [torch.empty(0, dtype=torch.int64)]
        first = int(torch.searchsorted(torch.tensor(self._ends), start, right=True)) - 1
        for window in range(first, self.num_windows):
            low, high = self._ends[window], self._ends[window + 1]
            if low >= stop:
                break
            found.append(self._window(window)[max(start - low, 0) : min(stop, high) - low])
        return torch.cat(found)

    def _window(self, window: int) -> Tensor:
        with self._lock:
            if window not in self._drawn:
                pieces = range(self._cuts[window], self._cuts[window + 1])
                inside = torch.cat([torch.arange(int(self._first[k]), int(self._last[k])) for k in pieces])
                draws = generator(self.seed, "shuffle-window", self.epoch * self.num_windows + window)
                self._drawn[window] = inside[torch.randperm(len(inside), generator=draws)]
                while len(self._drawn) > 2:
                    self._drawn.popitem(last=False)
            return self._drawn[window]
