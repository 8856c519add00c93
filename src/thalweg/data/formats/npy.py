"""NumPy's npy: one array, checked by its header before memory is taken; pickles are never opened."""

import math
from pathlib import Path
from typing import IO

import numpy as np

from thalweg.core.errors import DamagedFile
from thalweg.data.formats.base import ArrayFormat, check_dtype, check_size


class Npy(ArrayFormat):
    """One array."""

    suffixes = (".npy",)

    def read(self, path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
        with path.open("rb") as file:
            check_header(file, path.stat().st_size, str(path))
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)


def check_header(file: IO[bytes], stored: int, where: str, *, at_once: bool = True) -> None:
    """Refuse an npy stream by its header: dtype, declared size, and bytes that are not there.

    `at_once`: it is to be read as a whole, so that its size has a limit.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    check_dtype(dtype, where)
    needed = math.prod(shape) * dtype.itemsize
    if at_once:
        check_size(needed, where)
    stored -= file.tell()
    if needed > stored or min(shape, default=0) < 0:
        what = f"declares {needed:,} bytes, holds {stored:,}"
        raise DamagedFile(what, argument=where, hint="it is truncated, so fetch it again")
