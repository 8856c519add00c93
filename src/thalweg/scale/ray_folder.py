"""The folder of a cluster of Ray that is started here, and the removal of those whose owners are dead.

The command and the process that drives Ray share a lock of the system (`flock`) on a file in the folder. It ends with
the later of both, however they end. A folder is removed only where that file is there, was made on the running kernel
by the same user, and is not locked. So folders of others, and those of a Ray that was started otherwise, stay.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from thalweg.core.temporary import UNKNOWN_BOOT, boot
from thalweg.scale.ray_driver import remove

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

START = "ray-"  # short, as the names of sockets in it may have 107 bytes


class RayFolder(NamedTuple):
    """A folder, and the descriptor of its locked file, which a process that is to share the lock inherits."""

    path: str
    lock: int


def home() -> str:
    """Where such folders lie: a path as short as can be."""
    return "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()


def make() -> RayFolder:
    """A new folder, its file locked."""
    while True:
        path = tempfile.mkdtemp(prefix=START, dir=home())
        lock = os.open(_lock_file(path), os.O_CREAT | os.O_RDWR, 0o600)
        if fcntl is None:
            return RayFolder(path, lock)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(_lock_file(path)):  # `clean` of another command may have been quicker
            return RayFolder(path, lock)
        os.close(lock)


def clean() -> None:
    """Remove the folders whose owners are dead."""
    if fcntl is None or boot() == UNKNOWN_BOOT:
        return
    for path in Path(home()).glob(f"{START}*"):
        with suppress(OSError):  # gone, another's, or in use
            lock = os.open(_lock_file(str(path)), os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid() and not path.is_symlink():
                    remove(str(path))
            finally:
                os.close(lock)


def _lock_file(path: str) -> str:
    """Its name tells the running kernel, since other hosts may share the folder and not the locks."""
    return os.path.join(path, f".thalweg-{boot()}")
