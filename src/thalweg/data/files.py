"""Files in data units: images uint8 or float32 in [0, 1] as (N, C, H, W), rows float32 or float64 as (N, D).

What a stranger hands over is checked before it is believed: sizes are read from headers before memory is
taken, pickles are never opened, and whatever is wrong becomes one line: what, where and how to mend it.
"""

import math
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import DamagedFile, ThalwegError, UserError
from thalweg.data.columns.layout import Layout
from thalweg.data.csv_blocks import open_table
from thalweg.data.float32_check import check_whole_numbers
from thalweg.data.validate import arrange, as_floats, check_cells, verify

LIMIT_BYTES = 8 << 30  # the most an array may declare; a larger one belongs in shards
LIMIT_PIXELS = 64_000_000  # the most one image may declare before it is decoded
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
TABLE_SUFFIXES = (".csv", ".parquet")
SUFFIXES = (".npy", ".npz", *TABLE_SUFFIXES, *IMAGE_SUFFIXES)
LARGEST = float(torch.finfo(torch.float32).max)  # that a network takes
ARRAY_KEYS = ("x", "x_train", "images", "X", "arr_0")
_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, ArithmeticError, RuntimeError, Warning)
_DAMAGED += (zipfile.BadZipFile, zlib.error, struct.error)


class Rows(NamedTuple):
    """What a file holds, and the columns it was read from if it is a table."""

    x: Tensor  # (N, *)
    layout: Layout
    singles: list[bool] | None = None  # which columns of a table came in float32


def read_array(
    path: str | Path, *, shape: tuple[int, ...] | None = None, finite: bool = True, bounded: bool = True
) -> Tensor:
    """Read npy, npz, CSV, Parquet, one image or a folder of images, checked, in data units: `read_rows` without names.

    Images come as (N, C, H, W), uint8 or float32 in [0, 1]; rows as (N, D), float64 where float32 would round them.
    `shape`, (C, H, W) or (D,), is what each row must have: it picks grey or colour, and lets a file hold one row
    without its batch axis. Where a 4-D array could be read both ways, axis 1 is taken for the channels.
    `finite=False` lets rows with NaN or infinity pass, for the caller to drop; `bounded=False` lets images have any
    values, as masks do.
    """
    return read_rows(path, shape=shape, finite=finite, bounded=bounded).x


def read_rows(
    path: str | Path,
    *,
    layout: Layout | None = None,
    header: bool | None = None,
    drop: Sequence[str] = (),
    shape: tuple[int, ...] | None = None,
    finite: bool = True,
    bounded: bool = True,
) -> Rows:
    """As `read_array`, with the names of a table's columns.

    Args:
        path: The file or folder.
        layout: The columns of the model that the rows are for, which a table must have, in any order.
        header: Whether the first line of a CSV names its columns; None: the lines must tell (`data.csv_header`).
        drop: Columns of a table to leave out.
        shape: As in `read_array`, like `finite` and `bounded`.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        x, found, singles = _read_table(path, layout, header, drop)
        if finite:
            names = found.names or [str(i) for i in range(x.shape[1])]
            check_cells(x.numpy(), names, str(path), largest=LARGEST)
    else:
        if header is not None or drop:
            option = "drop" if header is None else "header"
            raise UserError(f"has no effect on {path.name}, which is no table", argument=option, hint="leave it out")
        x, found, singles = _read_arrays(path, shape), Layout(), None
    x = arrange(x, shape, str(path))
    if not bounded and x.ndim == 4:
        verify(x.flatten(1), None, "vector", where=str(path))
        return Rows(x, found, singles)
    some = finite or not x.is_floating_point() or x.ndim < 2
    wanted = x if some else x[x.flatten(1).isfinite().all(1)]
    if len(wanted) or finite:
        verify(wanted, shape, "image" if x.ndim == 4 else "vector", where=str(path))
    return Rows(x, found, singles)


def _read_arrays(path: Path, shape: tuple[int, ...] | None) -> Tensor:
    """Pixels uint8 or float32, rows float32 or float64; what is what is told by the axes, or by `shape`."""
    if not path.exists():
        raise UserError(
            "no such file or folder", argument=str(path), hint="check the spelling and the working directory"
        )
    with _reading(path):
        array = _read(path, shape)
    _check_dtype(array.dtype, str(path))
    if (array.ndim > 2 or (shape is not None and len(shape) == 3)) and array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # an overflow is reported as infinity, with its row
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    array = np.ascontiguousarray(array, np.float64 if wide else array.dtype.newbyteorder("="))
    if array.ndim > 2 or (shape is not None and len(shape) == 3):
        return torch.from_numpy(array)
    rows = as_floats(torch.from_numpy(array))
    if array.dtype.kind in "iu" and array.ndim == 2:
        for i, (values, source) in enumerate(zip(rows.numpy().T, array.T, strict=True)):
            check_whole_numbers(values, source, f"column {i + 1}", str(path))
    return rows


def _read_table(path: Path, layout: Layout | None, header: bool | None, drop: Sequence[str]) -> Rows:
    """A table of numbers as float64 (N, D), matched to a model's columns or with those that it has itself."""
    import pyarrow as pa

    where = str(path)
    table = open_table(path, header=header, known=None if layout is None else layout.known)
    table.require(drop)
    if layout is not None and not table.headless:
        layout.check(table.names, where, drop=drop, mend="leave it out with --drop {name!r}")
    needed = table.num_bytes
    if needed > LIMIT_BYTES:
        _refuse_size(needed, where)
    left_out = {*drop, *(layout.ignored if layout else ())}
    names = [name for name in table.names if name not in left_out]
    blocks = [*table.blocks(names)]
    if not blocks:
        raise UserError("no rows", argument=where, hint="give a table with at least one")
    frame = pa.concat_tables(blocks)
    how = {"where": where, "headless": table.headless, "parse": table.is_text}
    if layout is None:
        layout, x = Layout.fit_encode(frame, ignored=drop, **how)
    else:
        x = layout.encode(frame, **how)
    return Rows(torch.from_numpy(x), layout, None if table.is_text else layout.singles(frame))


def read_names(path: str | Path, num_rows: int | None = None) -> list[str]:
    """One name a row, for score tables: file names for images, else row numbers.

    `num_rows`, where the caller has it, spares reading the file again to count.
    """
    path = Path(path)
    if path.is_dir():
        return [p.name for p in image_files(path)]
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [path.name]
    return [str(i) for i in range(len(read_array(path)) if num_rows is None else num_rows)]


def image_files(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, sorted by name; hidden files are passed over."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(files)


def read_npz(path: Path, keys: Sequence[str], *, required: bool = True) -> np.ndarray | None:
    """The first of `keys` that an npz holds; if required, its only array will do, and none is an error."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
        key = next((k for k in keys if k in members), None)
        if key is None and required and len(members) == 1:
            key = next(iter(members))
        if key is None:
            if not required:
                return None
            raise UserError(f"{path}: holds {', '.join(members) or 'no array'}: name one of them {keys[0]!r}")
        with archive.open(members[key]) as file:
            _check_header(file, members[key].file_size, f"{path}[{key}]")
        with archive.open(members[key]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on this file into one line."""
    try:
        yield
    except ThalwegError:
        raise
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read it: change its mode or its owner") from error
    except _DAMAGED as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedFile(f"{path}: damaged or not what its name says ({why}): fetch it again") from error


def _read(path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    suffix = path.suffix.lower()
    channels = shape[0] if shape is not None and len(shape) == 3 else None
    if path.is_dir():
        files = image_files(path)
        if not files:
            raise UserError(
                f"{path}: no {', '.join(IMAGE_SUFFIXES)} directly in this folder: name the one that holds them"
            )
        return _read_images(files, channels)
    if suffix in IMAGE_SUFFIXES:
        return _read_images([path], channels)
    if suffix == ".npy":
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size, str(path))
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    if suffix == ".npz":
        array = read_npz(path, ARRAY_KEYS)
        assert array is not None  # required
        return array
    raise UserError(f"{path}: {suffix or 'no suffix'}: give a folder or one of {', '.join(SUFFIXES)}")


def _check_header(file: IO[bytes], stored: int, where: str) -> None:
    """Refuse an npy stream by its header: dtype, declared size, and bytes that are not there."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    _check_dtype(dtype, where)
    needed = math.prod(shape) * dtype.itemsize
    if needed > LIMIT_BYTES:
        _refuse_size(needed, where)
    stored -= file.tell()
    if needed > stored or min(shape, default=0) < 0:
        raise DamagedFile(f"{where}: declares {needed:,} bytes, holds {stored:,}: truncated, fetch it again")


def _check_dtype(dtype: np.dtype, where: str) -> None:
    if dtype.hasobject:
        raise UserError(f"{where}: holds Python objects, pickles are not opened: save float32 or uint8")
    if dtype.kind not in "fiub":
        raise UserError(f"{where}: dtype {dtype} is not real numbers: save it as float32 or uint8")


def _refuse_size(needed: int, where: str) -> None:
    raise UserError(f"{where}: declares {needed / 2**30:.1f} GiB, limit {LIMIT_BYTES / 2**30:g}: split it")


def _read_images(files: list[Path], channels: int | None) -> np.ndarray:
    """Decode images of one size to uint8 (N, C, H, W); sizes and colours are read from all headers first."""
    from PIL import Image

    probes = [probe(file) for file in files]
    (size, _), *_ = Counter(s for s, _ in probes).most_common(1)
    odd = next((i for i, (s, _) in enumerate(probes) if s != size), None)
    if odd is not None:
        (w, h), (width, height) = probes[odd][0], size
        raise UserError(f"{files[odd]}: is {w} x {h} pixels, most are {width} x {height}: resize it")
    grey = channels == 1 or (channels != 3 and all(mode in ("1", "L", "LA") for _, mode in probes))
    shape = (len(files), size[1], size[0], 1 if grey else 3)
    if math.prod(shape) > LIMIT_BYTES:
        _refuse_size(math.prod(shape), str(files[0].parent))
    pixels = np.empty(shape, np.uint8)
    for i, file in enumerate(files):
        with _reading(file), Image.open(file) as image:
            pixels[i] = np.asarray(image.convert("L" if grey else "RGB")).reshape(shape[1:])
    return pixels.transpose(0, 3, 1, 2)


def probe(file: Path) -> tuple[tuple[int, int], str]:
    """An image's (width, height) and mode from its header; more than 8 bits a pixel is refused."""
    from PIL import Image

    too_large = f"{file}: over {LIMIT_PIXELS // 10**6} megapixels, not decoded: scale it down"
    with _reading(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                size, mode = image.size, image.mode
        except Image.DecompressionBombError as error:
            raise UserError(too_large) from error
    if math.prod(size) > LIMIT_PIXELS:
        raise UserError(too_large)
    if mode.startswith(("I", "F")):
        raise UserError(f"{file}: more than 8 bits a pixel (mode {mode}): save it as 8-bit, or use npy")
    return size, mode
