"""Files and sealed folders on disk without pickle: tensors in safetensors, the rest in JSON.

A file is written under a temporary name in its own directory, flushed and renamed, so a reader sees either the old or
the new bytes. A folder is *sealed* by a manifest of every file's SHA-256, written last: truncation or a changed bit is
found before a value is used. A folder has one writer at a time.
"""

import errno
import hashlib
import json
import math
import operator
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.core import temporary
from thalweg.core.errors import DamagedFile, DiskFull, ThalwegError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from thalweg.core.weights import Stored

MANIFEST = "manifest.json"
FORMAT = 1
MAX_HEADER, MAX_JSON = 16 * 2**20, 8 * 2**20  # bytes: a forged file must not claim the memory
MAX_NAME = 255  # bytes
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
REMEDY = "restore it from a copy, or go back to an older checkpoint"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file completely, or leave it unchanged; `DiskFull` where there is no room."""
    path = Path(path)
    with write_errors(path, len(data)):
        with temporary.file(path) as descriptor:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        _sync_folder(path.parent)


def write_json(path: str | Path, obj: Any) -> None:
    """Write an object as indented JSON, keys in the order given; NaN and infinity are refused."""
    try:  # no newline at the end: every truncation then breaks the syntax
        text = json.dumps(obj, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        raise UserError(f"cannot be written as JSON ({err})", argument=str(path)) from err
    write_bytes(path, text.encode())


def read_json(path: str | Path) -> Any:
    """The object in a JSON file; `DamagedFile` unless it is UTF-8, whole and finite."""

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is not a finite number")
        return value

    data = _read(path, MAX_JSON)
    try:
        return json.loads(data.decode(), parse_float=number, parse_constant=number)
    except (ValueError, RecursionError) as err:
        raise DamagedFile(f"not valid JSON ({err})", argument=str(path), hint=REMEDY) from err


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors; views and tensors that share memory are stored as copies."""
    write_bytes(path, tensor_bytes(tensors, metadata, where=path))


def tensor_bytes(
    tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None, *, where: str | Path = "tensors"
) -> bytes:
    """Named tensors in the form of a safetensors file; `where` begins the message of an error."""
    from safetensors.torch import save
    from torch import strided

    pointers: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__" or tensor.layout is not strided:
            why = f"safetensors cannot hold {name!r}, a reserved name or not a dense tensor"
            raise UserError(why, argument=str(where))
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in pointers or copy.untyped_storage().nbytes() != copy.nbytes:
            copy = copy.clone()
        pointers.add(copy.untyped_storage().data_ptr())
        plain[name] = copy
    try:
        return save(plain, dict(metadata) if metadata else None)
    except (KeyError, ValueError, RuntimeError) as err:
        raise UserError(f"safetensors cannot hold these tensors ({err})", argument=str(where)) from err


def read_tensors(path: str | Path) -> dict[str, "Tensor"]:
    """The named tensors of a safetensors file, on the CPU; `DamagedFile` where it is not valid."""
    from safetensors.torch import load

    data = _read(path)
    _header_size(path, data[:8], len(data))
    try:
        return load(data)
    except Exception as err:  # nothing of ours runs here, and the parser's errors have no common type
        raise DamagedFile(f"not a valid safetensors file ({err})", argument=str(path), hint=REMEDY) from err


def read_header(path: str | Path) -> dict[str, "Stored"]:
    """The types and shapes of the tensors in a safetensors file, by name; their numbers are not read."""
    from thalweg.core.weights import Stored

    with _read_errors(path), _regular(path).open("rb") as file:
        size = _header_size(path, file.read(8), os.fstat(file.fileno()).st_size)
        data = file.read(size)
    try:
        tree = json.loads(data)
        tree.pop("__metadata__", None)
        return {
            name: Stored(str(part["dtype"]), tuple(map(operator.index, part["shape"]))) for name, part in tree.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise DamagedFile(f"not a valid safetensors file ({err!r:.100})", argument=str(path), hint=REMEDY) from err


def _header_size(path: str | Path, first: bytes, total: int) -> int:
    """The length of a safetensors header, from the file's first eight bytes."""
    size = int.from_bytes(first, "little")
    if len(first) < 8 or size > min(total - 8, MAX_HEADER):
        raise DamagedFile("truncated, or not a safetensors file", argument=str(path), hint=REMEDY)
    return size


def seal(folder: str | Path, names: Sequence[str] | None = None, about: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of the named files, by default of all files below the folder, and of what is said `about`."""
    folder = Path(folder)
    if names is None:
        found = (Path(root, file) for root, _, files in os.walk(folder) for file in files)
        names = sorted(path.relative_to(folder).as_posix() for path in found if not temporary.is_temporary(path))
    files = {}
    for name in names:
        if name != MANIFEST:
            path = inside(folder, name)
            files[name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    write_json(folder / MANIFEST, {**(about or {}), "format": FORMAT, "files": files})


def verify(folder: str | Path, names: Sequence[str] | None = None) -> list[str]:
    """Raise `DamagedFile`, naming the file, unless the named files (by default all listed) are as sealed.

    Each is read once. Returns the names that the manifest lists.
    """
    folder = Path(folder)
    listed = _manifest(folder)
    require_listed(folder, names or (), listed)
    for name in listed if names is None else names:
        path, entry = inside(folder, name), listed[name]
        if not path.is_file():
            raise DamagedFile(f"listed in {MANIFEST} but missing", argument=str(path), hint=REMEDY)
        size = path.stat().st_size
        if size != entry["bytes"]:
            sizes = f"{size} bytes where {entry['bytes']} were sealed"
            raise DamagedFile(sizes, argument=str(path), hint=REMEDY)
        if _sha256(path) != entry["sha256"]:
            raise DamagedFile("its content has changed since it was sealed", argument=str(path), hint=REMEDY)
    return list(listed)


def require_listed(folder: str | Path, names: Iterable[str], listed: Collection[str]) -> None:
    """`DamagedFile` where one of the names is not among those that the folder's manifest lists."""
    for name in names:
        if name not in listed:
            raise DamagedFile(
                f"not listed in {MANIFEST}, so not part of it",
                argument=str(Path(folder) / name),
                hint=f"move it away, or restore {MANIFEST}",
            )


def save_folder(path: str | Path, write: Callable[[Path], None], about: Mapping[str, Any] | None = None) -> None:
    """Fill a temporary folder by `write`, seal it, and rename it to the path; after an error the old one stays.

    `about`: further entries of the manifest.
    """
    path = Path(path)
    with write_errors(path, None):
        with temporary.folder(path) as new:
            write(new)
            seal(new, about=about)
            _sync_tree(new)
            temporary.put(new, path)
        _sync_folder(path.parent)


def newest_valid(parent: str | Path) -> tuple[Path | None, list[str]]:
    """The newest valid sealed folder, by the numbers in its name, and a warning for each that is skipped."""
    warnings: list[str] = []
    folders = [path for path in Path(parent).glob("step-*") if path.is_dir()]
    folders.sort(key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path.name), reverse=True)
    for folder in folders:
        try:
            verify(folder)
            return folder, warnings
        except UserError as err:
            warnings.append(f"skipped {folder}: {err}")
    return None, warnings


def _read(path: str | Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file, at most `limit`."""
    with _read_errors(path):
        size = os.stat(_regular(path)).st_size
        if limit is not None and size > limit:
            raise DamagedFile(f"{size} bytes, where at most {limit} are expected", argument=str(path))
        return Path(path).read_bytes()


def _regular(path: str | Path) -> Path:
    """The path; UserError for a device or a pipe, which may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError("must be a regular file", argument=str(path))
    return Path(path)


def _sha256(path: Path) -> str:
    with _read_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = inside(folder, MANIFEST)
    if not path.is_file():
        raise DamagedFile("missing, or no file, so the folder was never finished", argument=str(path), hint=REMEDY)
    tree = read_json(path)
    version = tree.get("format") if isinstance(tree, dict) else None
    if type(version) is int and version > FORMAT:
        newer = f"format {version}, written by a newer thalweg (this reads {FORMAT})"
        raise UserError(newer, argument=str(path), hint="upgrade thalweg")
    files = tree.get("files") if version == FORMAT and type(version) is int else None
    entry = {"sha256": str, "bytes": int}
    if not isinstance(files, dict) or not all(
        isinstance(file, dict) and {key: type(value) for key, value in file.items()} == entry for file in files.values()
    ):
        raise DamagedFile(f"not a manifest of format {FORMAT}", argument=str(path), hint=REMEDY)
    return files


def inside(folder: Path, name: str) -> Path:
    """The path of a file that a folder holds; `DamagedFile` where the name or a link leads out of it.

    In the Hub's cache the files of a snapshot are links to its repository's `blobs`, which count as its own.
    """
    bad = not name.isprintable() or len(name.encode()) > MAX_NAME
    if bad or "\\" in name or ":" in name or {"", ".", ".."} & set(name.split("/")):
        raise DamagedFile(f"lists {name[:MAX_NAME]!r}, no name of a file inside", argument=str(folder / MANIFEST))
    path, home = folder / name, folder.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise RuntimeError; later ones resolve such a link
        raise DamagedFile("a link leads to itself", argument=str(path), hint="copy the folder again") from error
    if not target.is_relative_to(home) and not _is_blob(target, home):
        raise DamagedFile(
            f"a link leads to {str(target)!r}, outside the folder",
            argument=str(path),
            hint="copy the folder with `cp -rL`, which follows links, and use the copy",
        )
    return path


def _is_blob(target: Path, home: Path) -> bool:
    """Whether a file lies in REPOSITORY/blobs, and the folder is REPOSITORY/snapshots/COMMIT; both without links."""
    blobs = home.parent.parent / "blobs"
    return home.parent.name == "snapshots" and target.parent == blobs and not blobs.is_symlink()


def _sync_folder(path: Path) -> None:
    """Flush a directory's entries, where the system lets a directory be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for path in (Path(root, name) for name in files):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(root))


@contextmanager
def write_errors(path: Path, wanted: int | None) -> Iterator[None]:
    """Turn the system's errors into `DiskFull` and `UserError`, with the path and the number of bytes to write."""
    try:
        yield
    except OSError as err:
        if isinstance(err, ThalwegError):
            raise
        path = temporary.final(path)
        if err.errno in _FULL:
            amount = "" if wanted is None else f" {wanted} bytes"
            raise DiskFull(f"no room to write{amount} to {path}: {err.strerror}; what was there is intact") from err
        raise UserError(f"cannot be written ({err.strerror or err})", argument=str(path)) from err


@contextmanager
def _read_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise UserError(f"cannot be read ({err.strerror or err})", argument=str(path)) from err
