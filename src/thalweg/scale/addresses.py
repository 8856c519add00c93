"""Files by their address: a path of this machine, or any address of fsspec, such as s3://bucket/rows.parquet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from thalweg.core import store
from thalweg.core.errors import ThalwegError, UserError, one_line
from thalweg.data.run_folders import refuse_run

LOCAL = ("file://", "local://")
WILD = "*?["


def is_remote(address: str) -> bool:
    """Whether the address is one of fsspec's, and no path of this machine."""
    return "://" in address and not address.startswith(LOCAL)


def plain(address: str) -> str:
    """The address without file://."""
    return next((address.removeprefix(start) for start in LOCAL if address.startswith(start)), address)


def is_pattern(address: str) -> bool:
    """Whether the last part or a folder of the address has a wildcard, and no file is called so."""
    return any(letter in address for letter in WILD) and (is_remote(address) or not Path(address).exists())


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Turn what a file system raises into one line."""
    try:
        yield
    except ThalwegError:
        raise
    except ImportError as error:  # fsspec names the package that is missing
        raise UserError(f"needs a package ({one_line(error)})", argument=address, hint="install it with pip") from error
    except FileNotFoundError as error:
        raise UserError("no such file or folder", argument=address, hint="check the spelling") from error
    except PermissionError as error:
        raise UserError("no permission to read it", argument=address, hint="change its mode or its owner") from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or one_line(error)})", argument=address) from error


def file_system(address: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it). UserError: nobody knows the protocol, or its package is missing."""
    import fsspec

    with reading(address):
        try:
            return fsspec.core.url_to_fs(address)
        except ValueError as error:  # an unknown protocol
            raise UserError(f"must be an address of fsspec ({one_line(error)})", argument=address) from error


def listed(address: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files of a pattern, a folder (not those below it) or an address of one file, in order of their names.

    Hidden files, and those that begin with _, are left out of folders and patterns. UserError where there is none.
    """
    address = plain(address)
    fs, path = file_system(address)
    if not is_remote(address):
        refuse_run(Path(address))
    with reading(address):
        if is_pattern(address):
            found = [name for name in fs.glob(path) if not _hidden(name)]
        elif fs.isdir(path):
            found = [name for name in fs.ls(path, detail=False) if not _hidden(name)]
        elif fs.exists(path):
            return [address]
        else:
            raise UserError("no such file or folder", argument=address, hint="check the spelling; quote a pattern")
    found = sorted(name for name in found if Path(name).suffix.lower() in suffixes)
    if not found:
        hint = "check the spelling; quote a pattern, so that the shell leaves it"
        raise UserError(f"must match files that end in {', '.join(suffixes)}", argument=address, hint=hint)
    return [_address(fs, name, address) for name in found]


def _hidden(name: str) -> bool:
    return name.rstrip("/").rsplit("/", 1)[-1].startswith((".", "_"))


def _address(fs: Any, name: str, given: str) -> str:
    """The address of a found file in the form in which the folder or pattern was given."""
    if is_remote(given):
        return fs.unstrip_protocol(name)
    return name if os.path.isabs(given) else os.path.relpath(name)


def opened(address: str, name: str | None = None) -> IO[bytes]:
    """The file, to be read at any place. `name`: what messages call it; the address if None."""
    if not is_remote(address):
        with reading(name or address):
            return Path(address).open("rb")
    fs, path = file_system(address)
    with reading(name or address):
        return fs.open(path, "rb")


def stat(address: str) -> tuple[int, str]:
    """(bytes, a text that changes when the file does: its time, or what the file system keeps in its place)."""
    with reading(address):
        if not is_remote(address):
            found = os.stat(address)
            return found.st_size, str(found.st_mtime_ns)
        fs, path = file_system(address)
        return int(fs.size(path)), str(fs.ukey(path))


def make_folder(address: str) -> None:
    """Make a folder and those above it."""
    if is_remote(address):
        fs, path = file_system(address)
        with store.write_errors(Path(path), None):
            fs.makedirs(path, exist_ok=True)
    else:
        with store.write_errors(Path(address), None):
            Path(address).mkdir(parents=True, exist_ok=True)


def names_in(folder: str) -> list[str]:
    """The names in a folder; none where it is not there."""
    if not is_remote(folder):
        path = Path(folder)
        return sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    fs, path = file_system(folder)
    with reading(folder):
        if not fs.exists(path):
            return []
        fs.invalidate_cache(path)
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))


def inside(folder: str, name: str) -> str:
    """The address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def read_bytes(address: str) -> bytes:
    """All of a file."""
    with opened(address) as file, reading(address):
        return file.read()


def remove(address: str) -> None:
    """Remove a file."""
    fs, path = file_system(address)
    with reading(address):
        fs.rm_file(path)


def write_bytes(address: str, data: bytes) -> None:
    """Write a file whole or not at all: aside and renamed on this machine, in one call elsewhere."""
    if not is_remote(address):
        store.write_bytes(address, data)
        return
    fs, path = file_system(address)
    with store.write_errors(Path(path), len(data)):
        fs.pipe_file(path, data)
