"""Rows of an npy file that stays on disk: each is read at its place in the file.

A place is read by `pread` and not through a memory map: the system ends a process without a word that touches a map
of a file which was cut meanwhile, where a read that comes short is an error in one line. Neither holds memory.
"""

import hashlib
import itertools
import math
import os
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.data.files import rows_of
from thalweg.data.formats.base import reading_array
from thalweg.data.formats.npy import check_header
from thalweg.data.stored.checks import ContentCheck
from thalweg.data.stored_rows import StoredRows, UnchangedFiles
from thalweg.data.validate import arrange

BLOCK_BYTES = 16 << 20  # that are checked at a time


class NpyRows(StoredRows):
    """The rows of an npy, checked in one pass over the file, in which it is hashed too.

    Args:
        path: A file of (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C), not in Fortran's order.
    """

    def __init__(self, path: Path):
        self.path = path
        with reading_array(path):
            with path.open("rb") as file:
                check_header(file, path.stat().st_size, str(path), at_once=False)
                self._start = file.tell()
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            raw, fortran, self._raw_dtype = npy_header(path)
        if fortran:
            hint = "save it by numpy.save(…, numpy.ascontiguousarray(x))"
            raise UserError(
                "is stored column by column, so its rows cannot be read alone", argument=str(path), hint=hint
            )
        self._unchanged = UnchangedFiles([path])
        self._row, self._bytes = raw[1:], math.prod(raw[1:]) * self._raw_dtype.itemsize
        first = self._units(np.zeros((1, *self._row), self._raw_dtype))
        self.shape, self.dtype = torch.Size([raw[0], *first.shape[1:]]), first.dtype
        self._digest = self._checked()

    def read(self, rows: Tensor) -> Tensor:
        """Neighbours in the file are read at once."""
        self._unchanged.require()
        numbers, raw = rows.numpy(), np.empty((len(rows), *self._row), self._raw_dtype)
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        for start, end in itertools.pairwise([*starts.tolist(), len(numbers)]):
            self._fill(raw[start:end], int(numbers[start]))
        return self._units(raw)

    def digest(self) -> str:
        """Of the file's bytes."""
        return self._digest

    def _fill(self, raw: np.ndarray, first: int) -> None:
        """Put rows, as they are stored, into an array: as many as it has, from `first` on."""
        view, place = raw.reshape(-1).view(np.uint8).data, self._start + first * self._bytes
        while view:
            count = os.preadv(self._file, [view[: 1 << 30]], place)  # a call gives 2 GiB at most
            if not count:
                hint = "put it back as it was, then go on with --resume"
                raise UserError("has been cut since the run began", argument=str(self.path), hint=hint)
            view, place = view[count:], place + count

    def _units(self, raw: np.ndarray) -> Tensor:
        return arrange(rows_of(raw, None, str(self.path)), None, str(self.path))

    def _checked(self) -> str:
        """The digest of the content; UserError for rows that are not finite, and pixels outside [0, 1]."""
        digest = hashlib.sha256(f"{self._raw_dtype.str} {(self.shape[0], *self._row)}".encode())
        check = ContentCheck(len(self), "image" if self.ndim == 4 else "vector", str(self.path))
        size = max(1, BLOCK_BYTES // max(1, self._bytes))
        for start in range(0, len(self), size):
            raw = np.empty((min(size, len(self) - start), *self._row), self._raw_dtype)
            self._fill(raw, start)
            digest.update(raw.reshape(-1).view(np.uint8).data)
            check.add(self._units(raw))
        check.finish()
        return digest.hexdigest()


def npy_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether by columns, dtype) of an npy file."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        return read(file)
