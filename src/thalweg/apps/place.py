"""The place of a run: looked at before any work, claimed when the run begins, given back when it never does."""

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from thalweg.core.errors import UserError


class Place:
    """A folder for a run, seen to be writable and to hold nothing of the wrong kind; UserError where it is not.

    `folders` and `files` are the names that a run writes there. Looking leaves nothing behind. Without `claim`, as for
    a process that is not the first of its run, it is neither looked at nor given back.
    """

    def __init__(self, folder: Path, *, folders: Sequence[str], files: Sequence[str], claim: bool = True):
        self.folder, self.names, self.missing, self.before = folder, (*files, *folders), [], set[str]()
        self._handle: int | None = None
        if not claim:
            self.names = ()
            return
        if os.path.exists(folder) and not folder.is_dir():
            raise UserError(f"{folder}: a file, where a folder for the run was wanted")
        self.missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # innermost first
        self._probe()
        for name in self.names:
            path, wanted = folder / name, "folder" if name in folders else "file"
            if os.path.lexists(path) and not (path.is_dir() if wanted == "folder" else path.is_file()):
                raise UserError(f"{path}: not a {wanted}, and the run writes its own there; move it away")
        self.before = {name for name in self.names if os.path.lexists(folder / name)}

    def _probe(self) -> None:
        try:
            self.make()
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{self.folder}: cannot make the folder or write in it ({reason}); name another folder with -o"
            ) from error
        finally:
            self._remove_folders()

    def hold(self) -> None:
        """Claim the folder, made if need be, for this process until it ends or lets go; UserError if another has it.

        A lock of the system on the folder itself, where there are such: a killed process leaves none behind.
        """
        self.make()
        if fcntl is None:
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            raise UserError(
                f"{self.folder}: another process is training there; wait for it, or name another folder with -o"
            ) from error
        self._handle = handle

    def begin(self) -> None:
        """Hold the folder for a new run; UserError where one has begun since it was looked at."""
        self.hold()
        if (self.folder / "config.json").is_file():
            raise UserError(f"{self.folder}: another process has begun a run there; name another folder with -o")

    def let_go(self) -> None:
        """Give the claim back, if there is one."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def make(self) -> None:
        """The folder and those above it."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def leave(self) -> None:
        """Take back what has been written since; whatever else is there stays."""
        for name in reversed(self.names):  # config.json, the first, last of all: till then the folder is a run's
            if name not in self.before:
                _remove(self.folder / name)
        self._remove_folders()

    def _remove_folders(self) -> None:
        for path in self.missing:
            with suppress(OSError, ValueError):  # not empty, or never made
                path.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
