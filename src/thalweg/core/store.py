"""One pickle-free way to hold state on disk: tensors in safetensors, the rest in JSON, aside and renamed.

A file is written under a temporary name in its own directory, flushed to the disk and renamed, so a reader
sees the old bytes or the new, never a mixture. A folder is *sealed* by a manifest of every file's SHA-256,
written last: any truncation or changed bit is met before a value is used. A folder has one writer at a time.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.core.errors import DamagedFile, DiskFull, ThalwegError, UserError, kind_of

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
FORMAT = 1
MAX_HEADER, MAX_JSON = 16 * 2**20, 8 * 2**20  # bytes: a forged file must not claim the memory
MAX_NAME = 255  # bytes
_TOKEN = secrets.token_hex(4)  # tells this process from an earlier one with the same id
_count = itertools.count()
_TEMP = re.compile(r"\.thalweg-(new|old)-(\d+)-([0-9a-f]{8})-\d+-(.+)")
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
REMEDY = "restore it from a copy, or go back to an older checkpoint"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write the file whole or leave it as it was; `DiskFull` when there is no room."""
    path = Path(path)
    temp = _temp("new", path)
    with write_errors(path, len(data)):
        try:
            descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temp, path)
        except BaseException:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json(path: str | Path, obj: Any) -> None:
    """Write an object as indented JSON, keys in the order given; NaN and infinity are refused."""
    try:  # no newline at the end: every truncation then breaks the syntax
        text = json.dumps(obj, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        raise UserError(f"{path}: cannot be held as JSON: {err}") from err
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
        raise DamagedFile(f"{path}: not valid JSON ({err}); {REMEDY}") from err


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors; views and tensors that share memory are stored as copies."""
    write_bytes(path, tensor_bytes(tensors, metadata, where=path))


def tensor_bytes(
    tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None, *, where: str | Path = "tensors"
) -> bytes:
    """Named tensors in the form of a safetensors file; `where` begins the message of an error."""
    from safetensors.torch import save
    from torch import strided

    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "__metadata__" or tensor.layout is not strided:
            raise UserError(f"{where}: safetensors cannot hold {name!r}: a reserved name, or not a dense tensor")
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in seen or copy.untyped_storage().nbytes() != copy.nbytes:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        plain[name] = copy
    try:
        return save(plain, dict(metadata) if metadata else None)
    except (KeyError, ValueError, RuntimeError) as err:
        raise UserError(f"{where}: safetensors cannot hold these tensors: {err}") from err


def read_tensors(path: str | Path) -> dict[str, "Tensor"]:
    """The named tensors of a safetensors file, on the CPU; `DamagedFile` when anything about it is wrong."""
    from safetensors.torch import load

    data = _read(path)
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(len(data) - 8, MAX_HEADER):
        raise DamagedFile(f"{path}: truncated, or not a safetensors file; {REMEDY}")
    try:
        return load(data)
    except Exception as err:  # the parser's errors have no common type
        raise DamagedFile(f"{path}: not a valid safetensors file ({err}); {REMEDY}") from err


def seal(folder: str | Path, names: Sequence[str] | None = None) -> None:
    """Write the manifest of the named files (all files below the folder, when not given), last of all."""
    folder = Path(folder)
    if names is None:
        found = (Path(root, file) for root, _, files in os.walk(folder) for file in files)
        names = sorted(path.relative_to(folder).as_posix() for path in found if not _TEMP.fullmatch(path.name))
    files = {}
    for name in names:
        if name != MANIFEST:
            path = _inside(folder, name)
            files[name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def verify(folder: str | Path, names: Sequence[str] | None = None) -> None:
    """Raise `DamagedFile`, naming the file, unless the named files (by default all listed) are as sealed."""
    folder = Path(folder)
    listed = _manifest(folder)
    for name in listed if names is None else names:
        if name not in listed:
            raise DamagedFile(
                f"{folder / name}: not listed in {MANIFEST}, so not part of it; move it away, or restore {MANIFEST}"
            )
        path, entry = _inside(folder, name), listed[name]
        if not path.is_file():
            raise DamagedFile(f"{path}: listed in {MANIFEST} but missing; {REMEDY}")
        if path.stat().st_size != entry["bytes"]:
            raise DamagedFile(f"{path}: {path.stat().st_size} bytes where {entry['bytes']} were sealed; {REMEDY}")
        if _sha256(path) != entry["sha256"]:
            raise DamagedFile(f"{path}: its content has changed since it was sealed; {REMEDY}")


def save_folder(path: str | Path, write: Callable[[Path], None]) -> None:
    """Fill a folder aside with `write`, seal it, and put it in place whole; on failure the old one stays.

    A process killed while it replaces an existing folder may leave the old one aside; `clean` puts it back.
    """
    path = Path(path)
    new, old = _temp("new", path), _temp("old", path)
    with write_errors(path, None):
        try:
            os.mkdir(new)
            write(new)
            seal(new)
            _sync_tree(new)
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
        except BaseException:
            with suppress(OSError):
                if old.exists() and not path.exists():
                    os.rename(old, path)
            _remove(new)
            raise
        _remove(old)
        _sync_folder(path.parent)


def clean(parent: str | Path) -> None:
    """Remove what killed processes left half-written in a folder, and put back what they had moved aside."""
    found = [(path, _TEMP.fullmatch(path.name)) for path in Path(parent).glob(".thalweg-*")]
    for path, match in found:
        if match is None or _alive(int(match[2]), match[3]):
            continue
        target = path.with_name(match[4])
        if match[1] == "old" and not target.exists():
            os.rename(path, target)
        else:
            _remove(path)


def newest_valid(parent: str | Path, pattern: str = "step-*") -> tuple[Path | None, list[str]]:
    """The newest sealed folder that verifies, by the numbers in its name, and a warning for each skipped."""
    warnings: list[str] = []
    folders = [path for path in Path(parent).glob(pattern) if path.is_dir()]
    folders.sort(key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path.name), reverse=True)
    for folder in folders:
        try:
            verify(folder)
            return folder, warnings
        except UserError as err:
            warnings.append(f"skipped {folder}: {err}")
    return None, warnings


def flatten(tree: Any) -> tuple[dict[str, "Tensor"], Any]:
    """Split a tree into named tensors and a structure that JSON holds exactly.

    A tree is made of dicts (with scalar keys, such as the integers of `optimizer.state_dict()`), lists,
    tuples, NamedTuples, tensors, None, bool, int, float and str. Sub-classes come back as their base.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(tree, (), tensors)


def unflatten(tensors: Mapping[str, "Tensor"], structure: Any, like: Any = None) -> Any:
    """The tree that `flatten` took apart.

    A NamedTuple comes back as its own class where `like`, a tree of the same form, has one at that place
    (field names must agree), and as a plain tuple elsewhere: a file never chooses a class.
    """
    try:
        return _unflatten(tensors, structure, like)
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as err:
        if isinstance(err, ThalwegError):
            raise
        raise DamagedFile(f"the stored structure does not fit its tensors ({err!r}); {REMEDY}") from err


def _flatten(tree: Any, path: tuple[str, ...], tensors: dict[str, "Tensor"]) -> Any:
    from torch import Tensor

    if isinstance(tree, Tensor):
        name = "/".join(path) or "value"
        while name in tensors or name == "__metadata__":
            name += "'"  # the keys 0 and "0" would share a name
        tensors[name] = tree
        return {"tensor": name}
    if tree is None or isinstance(tree, bool | int | str):
        return tree
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {"float": repr(float(tree))}
    if isinstance(tree, list):
        return [_flatten(part, (*path, str(i)), tensors) for i, part in enumerate(tree)]
    if isinstance(tree, tuple):
        fields = list(getattr(tree, "_fields", ()))
        parts = zip(fields or map(str, range(len(tree))), tree, strict=True)
        return {"tuple": [_flatten(part, (*path, name), tensors) for name, part in parts], "fields": fields}
    if isinstance(tree, dict) and all(key is None or isinstance(key, bool | int | str) for key in tree):
        return {"dict": [[key, _flatten(part, (*path, str(key)), tensors)] for key, part in tree.items()]}
    kind = f"a dict with the keys {list(tree)}" if isinstance(tree, dict) else kind_of(tree)
    raise UserError(f"{'.'.join(path) or 'the tree'}: {kind} cannot be stored without pickle")


def _unflatten(tensors: Mapping[str, "Tensor"], node: Any, like: Any) -> Any:
    if isinstance(node, list):
        return [_unflatten(tensors, part, _at(like, i)) for i, part in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "float" in node:
        return float(node["float"])
    if "dict" in node:
        return {key: _unflatten(tensors, part, _at(like, key)) for key, part in node["dict"]}
    parts = [_unflatten(tensors, part, _at(like, i)) for i, part in enumerate(node["tuple"])]
    stored, fields = node["fields"], getattr(like, "_fields", None)
    if not stored or not fields:
        return tuple(parts)
    if list(fields) != stored:
        raise UserError(f"{type(like).__name__} has the fields {', '.join(fields)}; stored are {stored}")
    return type(like)(*parts)


def _at(like: Any, key: Any) -> Any:
    if isinstance(like, dict):
        return like.get(key)
    return like[key] if isinstance(like, list | tuple) and type(key) is int and key < len(like) else None


def _read(path: str | Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file; a device or a pipe, which may never end, is refused."""
    with _read_errors(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a regular file")
        if limit is not None and status.st_size > limit:
            raise DamagedFile(f"{path}: {status.st_size} bytes, where at most {limit} are expected")
        return Path(path).read_bytes()


def _sha256(path: Path) -> str:
    with _read_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedFile(f"{path}: missing, or no file, so the folder was never finished; {REMEDY}")
    tree = read_json(path)
    version = tree.get("format") if isinstance(tree, dict) else None
    if type(version) is int and version > FORMAT:
        raise UserError(f"{path}: format {version}, written by a newer thalweg (this reads {FORMAT}): upgrade thalweg")
    files = tree.get("files") if version == FORMAT and type(version) is int else None
    entry = {"sha256": str, "bytes": int}
    if not isinstance(files, dict) or not all(
        isinstance(file, dict) and {key: type(value) for key, value in file.items()} == entry for file in files.values()
    ):
        raise DamagedFile(f"{path}: not a manifest of format {FORMAT}; {REMEDY}")
    return files


def _inside(folder: Path, name: str) -> Path:
    """The path of a listed file, refused unless it stays in the folder whatever links there are."""
    bad = not name.isprintable() or len(name.encode()) > MAX_NAME  # nothing else fits a line, or a file system
    bad = bad or "\\" in name or ":" in name or {"", ".", ".."} & set(name.split("/"))
    if bad or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DamagedFile(f"{folder / MANIFEST}: lists {name[:MAX_NAME]!r}, which is not a file inside the folder")
    return folder / name


def _temp(kind: str, path: Path) -> Path:
    return path.with_name(f".thalweg-{kind}-{os.getpid()}-{_TOKEN}-{next(_count)}-{path.name}")


def temporary(path: str | Path) -> Path:
    """A name beside the path under which to write what will replace it; `clean` knows it."""
    return _temp("new", Path(path))


def _wanted(path: Path) -> Path:
    """The path as the user knows it: temporary folders on the way under the name that they were to get."""
    return Path(*(match[4] if (match := _TEMP.fullmatch(part)) else part for part in path.parts))


def _alive(pid: int, token: str) -> bool:
    if pid == os.getpid():
        return token == _TOKEN
    try:
        os.kill(pid, 0)
    except OSError as err:
        return not isinstance(err, ProcessLookupError)
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
    """Turn the system's errors into ours, naming the path and the bytes that were to be written."""
    try:
        yield
    except OSError as err:
        if isinstance(err, ThalwegError):
            raise
        path = _wanted(path)
        if err.errno in _FULL:
            amount = "" if wanted is None else f" {wanted} bytes"
            raise DiskFull(f"no room to write{amount} to {path}: {err.strerror}; what was there is intact") from err
        raise UserError(f"cannot write {path}: {err.strerror or err}") from err


@contextmanager
def _read_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise UserError(f"cannot read {path}: {err.strerror or err}") from err
