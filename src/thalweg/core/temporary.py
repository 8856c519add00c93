"""Files and folders under construction: their temporary names, and which of them no living process writes.

A writer holds a lock of the system (`flock`) on what it writes until that has its final name or is gone. The lock ends
with the writer, however it dies, and is seen from every container and process namespace of one kernel; a process id is
not. The name tells which boot of which kernel it was made on, since other hosts may share the folder and not the locks.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OLD = 24 * 3600.0  # seconds untouched, after which nobody is taken to write what cannot be decided by a lock
UNKNOWN_BOOT = "00000000"
_NAME = re.compile(r"\.thalweg-(new|old)-([0-9a-f]{8})-[0-9a-f]{16}-(.+)")
_OPEN_FILES = "/proc/self/fd"
_BUSY = (errno.EAGAIN, errno.EACCES)


def name(kind: str, path: Path) -> Path:
    """A new name beside the path: `kind` is "new" for what will replace it, "old" for what is moved out of its way."""
    return path.with_name(f".thalweg-{kind}-{boot()}-{secrets.token_hex(8)}-{path.name}")


def is_temporary(path: Path) -> bool:
    """Whether the path has a name of this form."""
    return _NAME.fullmatch(path.name) is not None


def final(path: Path) -> Path:
    """The path with each temporary name in it replaced by the name that it is to get."""
    return Path(*(match[3] if (match := _NAME.fullmatch(part)) else part for part in path.parts))


def boot() -> str:
    """Eight hexadecimal digits of the running kernel's own id, all zero where the system does not tell it."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")
    except (OSError, UnicodeDecodeError):
        return UNKNOWN_BOOT
    return text[:8] if re.fullmatch(r"[0-9a-f]{32}", text) else UNKNOWN_BOOT


@contextmanager
def file(path: Path) -> Iterator[int]:
    """A descriptor to write to: what is written replaces the path when the block ends well, and is gone otherwise.

    Where the system can, the file has no name until it is whole, so that a killed process leaves nothing.
    """
    aside, descriptor = _nameless(path) or _named(path)
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
            aside = aside or _linked(path, descriptor)
            if fcntl is not None:  # elsewhere an open file cannot be renamed
                os.replace(aside, path)
        finally:
            os.close(descriptor)
        if fcntl is None:
            os.replace(aside, path)
    except BaseException:
        if aside is not None:
            remove(aside)
        raise


def _nameless(path: Path) -> tuple[None, int] | None:
    """A locked file without a name on the path's disk (Linux); None where there are none or they could get no name."""
    if fcntl is None or not hasattr(os, "O_TMPFILE") or not os.path.isdir(_OPEN_FILES):
        return None
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:  # told, if it is a fault, when a name is tried
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return None, descriptor


def _linked(path: Path, descriptor: int) -> Path:
    """Give a nameless file a temporary name, since a link does not replace what is there."""
    aside, files = name("new", path), os.open(_OPEN_FILES, os.O_RDONLY)
    try:
        os.link(str(descriptor), aside, src_dir_fd=files, follow_symlinks=True)
    finally:
        os.close(files)
    return aside


def _named(path: Path) -> tuple[Path, int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        aside = name("new", path)
        descriptor = os.open(aside, flags, 0o666)
        if _lock(aside, descriptor):
            return aside, descriptor
        os.close(descriptor)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """An empty folder that is to replace the path; what still has its temporary name in the end is removed."""
    while True:
        aside = name("new", path)
        os.mkdir(aside)
        try:
            with _locked_folder(aside) as held:
                if held:
                    yield aside
                    return
        finally:
            remove(aside)


@contextmanager
def _locked_folder(path: Path) -> Iterator[bool]:
    """Hold the lock of a folder; whether it is still there, since `clean` may have been quicker."""
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(path, descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> bool:
    """Lock what has just been made; whether the path still names it."""
    if fcntl is None:
        return True
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def put(new: Path, path: Path) -> None:
    """Give a folder its final name. One that has it already takes the temporary name, or is removed."""
    if not path.exists():
        os.rename(new, path)
    elif not _exchange(new, path):
        old = name("old", path)
        try:
            os.rename(path, old)
            os.rename(new, path)
        except BaseException:
            with suppress(OSError):
                if old.exists() and not path.exists():
                    os.rename(old, path)
            raise
        remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step, so that a kill leaves no moment without either; whether the system can."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(a), here, os.fsencode(b), swap) == 0


def clean(parent: str | Path, target: str | None = None) -> None:
    """Remove what dead writers left half-written in a folder, and put back what they had moved out of the way.

    For folders that this program alone fills, and where the caller has locked out other runs; never for a folder of
    the user's. `target`: only what was to become the file or folder of this name. Something is removed where its lock
    is free and it was made on the running kernel; of another host's, or without locks, what is untouched for a day.
    """
    for path in Path(parent).glob(".thalweg-*"):
        match = _NAME.fullmatch(path.name)
        if match is None or target not in (None, match[3]):
            continue
        with _abandoned(path, match[2]) as dead:
            if not dead:
                continue
            if match[1] == "old" and not path.with_name(match[3]).exists():
                os.rename(path, path.with_name(match[3]))
            else:
                remove(path)


@contextmanager
def _abandoned(path: Path, made_on: str) -> Iterator[bool]:
    """Whether no living process writes this, with its lock held so that it stays so."""
    descriptor, free = None, False
    if fcntl is not None:
        with suppress(OSError):  # gone, not readable, or no locks here
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
                free = True
            except OSError as error:
                if error.errno in _BUSY:
                    yield False
                    return
        here = boot()
        yield (free and made_on == here != UNKNOWN_BOOT) or _untouched(path)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _untouched(path: Path) -> bool:
    """Whether nothing in it has changed for a day."""
    try:
        times = [os.lstat(path).st_mtime]
        times += [os.lstat(os.path.join(root, file)).st_mtime for root, _, files in os.walk(path) for file in files]
    except OSError:  # somebody is at work there
        return False
    return time.time() - max(times) > OLD


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, as far as the system lets it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
