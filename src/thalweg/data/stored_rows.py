"""Rows that stay on disk, or where else they are stored, and are read when a step needs them.

What is held is a batch, and what a source keeps of its last reads. Sources are the modules of `data.stored`. A source
of at most `KEPT_BYTES` in data units is read whole instead.
"""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.permutation import Permutation

KEPT_BYTES = 256 << 20  # of rows in data units: as many are read whole, and stay in memory
HELD_OUT_ROWS = 50_000  # of a stored set, at most: more make no figure sharper than its other errors
HELD_OUT_NUMBERS = 2**25  # of all held-out rows of a stored set, at most: 128 MiB as float32
SOME_NUMBERS = 2**25  # of the training rows that a part of a run is fitted to or compared with
PART_NUMBERS = 2**22  # of the rows that are read at a time where all are


class EpochOrder(Protocol):
    """The places of an epoch's rows, computed when they are asked for."""

    def __getitem__(self, places: slice, /) -> Tensor: ...


class StoredRows(ABC):
    """Abstract: rows (N, *) in data units that are not in memory; images as (N, C, H, W), rows as (N, D).

    A subclass sets `shape` and `dtype`, and reads rows by their numbers from any thread.
    """

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """The rows of these numbers, int64 (B,), in that order, as (B, *) in data units.

        UserError where what is stored has changed since it was opened, or cannot be read.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256, in hex, of the content: of the files, or of all rows."""

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        """The order of all rows in an epoch."""
        return self.order(RowsExcept(len(self), torch.empty(0, dtype=torch.int64)), seed, epoch)

    def order(self, rows: "Rows", seed: int, epoch: int) -> EpochOrder:
        """The order in which an epoch visits these rows of the source: their places in `rows`, by the address.

        Here each order is as likely as any other. A source that reads some orders faster gives one of those.
        """
        return Permutation(len(rows), generator(seed, "shuffle", epoch))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """The number of axes, as of a tensor."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """What all rows would take in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Some rows, as a tensor."""
        return self.read(torch.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows)

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, in parts of at most `size` rows and `PART_NUMBERS` numbers."""
        size = max(1, min(size, PART_NUMBERS // max(1, math.prod(self.shape[1:]))))
        for start in range(0, len(self), size):
            yield self[start : start + size]


class ListedRows:
    """Numbers of some rows.

    Args:
        rows: The numbers, int64, rising.
    """

    def __init__(self, rows: Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Tensor) -> Tensor:
        """The numbers at these places."""
        return self.rows[places]

    def before(self, row: Tensor) -> Tensor:
        """How many of them are less than `row`, (B,)."""
        return torch.searchsorted(self.rows, row)


class RowsExcept:
    """The numbers 0 … n - 1 but a few, in rising order; the few are all that is held.

    Args:
        n: How many numbers there are.
        without: Those that are left out, int64, rising.
    """

    def __init__(self, n: int, without: Tensor):
        self.n, self.without = n, without
        self._before = without - torch.arange(len(without))  # how many are kept before each

    def __len__(self) -> int:
        return self.n - len(self.without)

    def __getitem__(self, places: Tensor) -> Tensor:
        """The numbers at these places."""
        return places + torch.searchsorted(self._before, places, right=True)

    def before(self, row: Tensor) -> Tensor:
        """How many of them are less than `row`, (B,)."""
        return row - torch.searchsorted(self.without, row)


Rows = ListedRows | RowsExcept


class Subset(StoredRows):
    """Some rows of a source, in the order in which it stores them.

    Args:
        base: The source.
        rows: Their numbers, rising.
    """

    def __init__(self, base: StoredRows, rows: Rows):
        self.base, self.rows = base, rows
        self.shape, self.dtype = torch.Size([len(rows), *base.shape[1:]]), base.dtype

    def read(self, rows: Tensor) -> Tensor:
        """Those of the source."""
        return self.base.read(self.rows[rows])

    def digest(self) -> str:
        """Of the source: all of it. The held-out rows, which are hashed beside it, tell which these are."""
        return self.base.digest()

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        """The order of an epoch, as the source reads it fast."""
        return self.base.order(self.rows, seed, epoch)


class ColumnSubset(StoredRows):
    """The rows of a source with their columns in another order.

    Args:
        base: Rows (N, D).
        order: Which of its columns each one is.
    """

    def __init__(self, base: StoredRows, order: Sequence[int]):
        self.base, self._order = base, torch.tensor(order)
        self.shape, self.dtype = torch.Size([len(base), len(order)]), base.dtype

    def read(self, rows: Tensor) -> Tensor:
        """Those of the source, reordered."""
        return self.base.read(rows)[:, self._order]

    def digest(self) -> str:
        """Of the source and the order."""
        return f"{self.base.digest()} {self._order.tolist()}"

    def order(self, rows: Rows, seed: int, epoch: int) -> EpochOrder:
        """The source's."""
        return self.base.order(rows, seed, epoch)


def some_rows(x: Tensor | StoredRows, most: int, numbers: int | None = None) -> Tensor:
    """At most `most` training rows: the first of shuffled ones; of stored ones, which lie in their own order, rows that
    are evenly spaced, and no more than `SOME_NUMBERS` numbers."""
    limit = SOME_NUMBERS if numbers is None else numbers
    if isinstance(x, Tensor):
        return x[:most]
    most = max(2, min(most, limit // max(1, math.prod(x.shape[1:])), len(x)))
    return x[torch.arange(most) * len(x) // most]


class UnchangedFiles:
    """Files that must stay as they were when they were opened, by their size and time of change.

    A file that is written anew under the same name is found as well.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = [*files]
        self.stamps = torch.tensor([self._stamp(file) for file in files], dtype=torch.int64)

    def require(self, i: int = 0) -> None:
        """UserError where a file has changed, or is gone."""
        try:
            same = self._stamp(self.files[i]) == tuple(self.stamps[i].tolist())
            what = "has changed since the run began"
        except OSError as error:
            same, what = False, f"cannot be read any more ({error.strerror})"
        if not same:
            hint = "put it back as it was, then go on with --resume"
            raise UserError(what, argument=str(self.files[i]), hint=hint)

    @staticmethod
    def _stamp(file: Path) -> tuple[int, int]:
        found = os.stat(file)
        return found.st_size, found.st_mtime_ns


def hash_file(file: Path, digest: "hashlib._Hash") -> None:
    """Add a file's bytes to a digest, a part at a time."""
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
