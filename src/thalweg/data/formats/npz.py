"""NumPy's npz: arrays by name, rows and labels among them."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.formats.base import ArrayFormat, reading_array
from thalweg.data.formats.npy import check_header

ARRAY_KEYS = ("x", "x_train", "images", "X", "arr_0")
LABEL_KEYS = ("y_train", "y", "labels")


class Npz(ArrayFormat):
    """Rows under one of `ARRAY_KEYS`, or the only array; labels under one of `LABEL_KEYS`."""

    suffixes = (".npz",)

    def read(self, path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
        array = read_npz(path, ARRAY_KEYS)
        assert array is not None  # required
        return array

    def labels(self, path: Path) -> np.ndarray | None:
        """The labels; None for what is no array of numbers, such as names, which training does not need."""
        try:
            return read_npz(path, LABEL_KEYS, required=False)
        except DamagedFile:
            raise
        except UserError:
            return None


def other_labels(path: Path) -> str | None:
    """What an npz holds as labels that are no class numbers, such as `y holds texts`; None where it has no labels."""
    words = {"O": "Python objects", "U": "texts", "S": "texts", "f": "numbers with fractions, or NaN"}
    with reading_array(path), zipfile.ZipFile(path) as archive:
        key = next((key for key in LABEL_KEYS if f"{key}.npy" in archive.namelist()), None)
        if key is None:
            return None
        with archive.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)
            first = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            dtype = read(file)[2]
    return f"{key} holds {words.get(dtype.kind, f'values of type {dtype}')}"


def read_npz(path: Path, keys: Sequence[str], *, required: bool = True) -> np.ndarray | None:
    """The first of `keys` that an npz holds; if required, its only array will do, and none is an error."""
    with reading_array(path), zipfile.ZipFile(path) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
        key = next((k for k in keys if k in members), None)
        if key is None and required and len(members) == 1:
            key = next(iter(members))
        if key is None:
            if not required:
                return None
            hint = f"name one of them {keys[0]!r}"
            raise UserError(f"holds {', '.join(members) or 'no array'}", argument=str(path), hint=hint)
        with archive.open(members[key]) as file:
            check_header(file, members[key].file_size, f"{path}[{key}]")
        with archive.open(members[key]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
