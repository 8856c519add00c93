"""The folder of a run: checked before any work, locked when the run begins, restored when it never does."""

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

LOGS = (".log", ".out", ".err")  # that a shell or a scheduler begins before the run
ANOTHER = "name another folder with -o"


class RunFolder:
    """A folder for a run. UserError unless it can be written and holds nothing of the wrong kind.

    The check leaves nothing behind.

    Args:
        folder: Where the run shall be. It need not exist.
        folders: The names of the folders that a run writes there.
        files: The names of the files that a run writes there.
        owner: Whether this process writes. Otherwise, as in ranks other than 0, nothing is checked or rolled back.
    """

    def __init__(self, folder: Path, *, folders: Sequence[str], files: Sequence[str], owner: bool = True):
        self.folder, self.names, self.missing, self.before = folder, (*files, *folders), [], set[str]()
        self._handle: int | None = None
        if not owner:
            self.names = ()
            return
        if os.path.exists(folder) and not folder.is_dir():
            raise UserError("must be a folder, and is a file", argument=str(folder), hint=ANOTHER)
        self.missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # innermost first
        self._probe()
        for name in self.names:
            path, wanted = folder / name, "folder" if name in folders else "file"
            if os.path.lexists(path) and not (path.is_dir() if wanted == "folder" else path.is_file()):
                text = f"must be a {wanted}, as the run writes its own there"
                raise UserError(text, argument=str(path), hint="move it away")
        self.before = {name for name in self.names if os.path.lexists(folder / name)}

    def files_of_others(self) -> list[str]:
        """What lies in the folder, sorted, that no run writes; what is hidden, and a log of the run, do not count."""
        if not self.names or not self.folder.is_dir():
            return []
        others = [name for name in os.listdir(self.folder) if name not in self.names]
        return sorted(name for name in others if not name.startswith(".") and not name.endswith(LOGS))

    def _probe(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            text = f"must be a folder that can be made and written in ({reason})"
            raise UserError(text, argument=str(self.folder), hint=ANOTHER) from error
        finally:
            self._remove_folders()

    def lock(self) -> None:
        """Lock the folder, made if need be, until `unlock` or the end of the process; UserError if another has it.

        A lock of the system on the folder itself, where there are such: a killed process leaves none behind.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            text = "must not be in use, and another process is training there"
            raise UserError(text, argument=str(self.folder), hint=f"wait for it, or {ANOTHER}") from error
        self._handle = handle

    def begin(self) -> None:
        """Lock the folder for a new run; UserError where one has begun since the check."""
        self.lock()
        if (self.folder / "config.json").is_file():
            text = "must not hold a run yet, and another process has begun one"
            raise UserError(text, argument=str(self.folder), hint=ANOTHER)

    def unlock(self) -> None:
        """Release the lock, if there is one."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def rollback(self) -> None:
        """Remove what a run has written since the check; whatever else is there stays."""
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
