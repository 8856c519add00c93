"""Files that appear under their name only when they are whole: one that grows by blocks, and arrays."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from thalweg.core import store, temporary


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write to, put in place when the block ends well; else what was there stays, and nothing else is left.

    `DiskFull` where there is no room, `UserError` where the path cannot be written. Where a file must have a name while
    it is written (not on most of Linux's file systems), a killed process leaves it under a hidden one.
    """
    path = Path(path)
    with (
        store.write_errors(path, None),
        temporary.file(path) as descriptor,
        open(descriptor, "wb", closefd=False) as file,
    ):
        yield file


def write_array(path: str | Path, array: Any) -> None:
    """Write a tensor or an array as .npy, without pickle."""
    import numpy as np

    held = io.BytesIO()
    np.save(held, np.asarray(array), allow_pickle=False)
    store.write_bytes(path, held.getvalue())
