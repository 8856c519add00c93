"""Files that appear under their name only when they are complete: those written block by block, and arrays."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from thalweg.core import store, temporary


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces the one at the path when the block ends without an error.

    `DiskFull` where there is no room, `UserError` where the path cannot be written. Where the file system has no
    nameless files, a killed process leaves one under a hidden name.
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

    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=False)
    store.write_bytes(path, buffer.getvalue())
