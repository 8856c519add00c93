"""Reads candidates: from arrays, PIL images, files and folders, and from a diffusers pipeline.

They become (N, C, H, W) float32 in [0, 1], or rows (N, D). A file that cannot be read is an error; with `skip_bad` it
is left out and reported.
"""

import inspect
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.bundle.inputs import as_rows
from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.columns.layout import Layout
from thalweg.data.files import read_names, read_picture, read_rows
from thalweg.data.formats.base import suffixes
from thalweg.data.formats.images import decode
from thalweg.data.image_files import listing, relative
from thalweg.data.validate import arrange, check_images, check_rows

log = logging.getLogger("thalweg")


class Candidates(NamedTuple):
    """Candidates as read.

    Args:
        x: (N, *).
        names: A name a row: its file, or its number.
        skipped: (name, reason) of each that was left out.
        layout: The columns of a table.
    """

    x: Tensor
    names: list[str]
    skipped: list[tuple[str, str]]
    layout: Layout = Layout()


def as_candidates(
    x: Any, shape: tuple[int, ...] | None = None, *, where: str = "candidates", layout: Layout | None = None
) -> Tensor:
    """(N, *) float32 from a tensor, an array, a list of PIL images or arrays, or a pipeline's output; rows may be
    float64, and a frame is matched by the names in `layout`.

    uint8, or float in [0, 1]; channels first or last. No candidate at all gives (0, *shape). UserError, with the index,
    for mixed sizes, NaN and what is no picture.
    """
    x = getattr(x, "images", x)  # a diffusers output
    if isinstance(x, Sequence) and not isinstance(x, str | bytes):
        x = _stacked(x, where)
    t = as_rows(layout or Layout(), x, where=where).detach().cpu()
    if t.ndim and not len(t):
        return torch.zeros(0, *(shape or (t.shape[1:] if t.ndim != 3 else (1, *t.shape[1:]))))
    t = arrange(t, shape, where)
    return (check_images if t.ndim == 4 else check_rows)(t, shape, where=where)


def generate(pipeline: Any, n: int, *, batch: int = 64, seed: int = 0, **options: Any) -> Tensor:
    """n candidates (n, C, H, W) of a diffusers pipeline, `batch` at a time; `options` go to the pipeline.

    Unconditional pipelines are asked for `batch_size`, those with a prompt for `num_images_per_prompt`: then give
    `prompt=` one text. Batch i draws at the address (seed, i), so the first n do not depend on how many follow.
    """
    taken = inspect.signature(pipeline.__call__).parameters
    name = next((k for k in ("batch_size", "num_images_per_prompt") if k in taken), None)
    if name is None or "output_type" not in taken:
        text = "must take output_type, and batch_size or num_images_per_prompt"
        raise UserError(text, argument=type(pipeline).__name__)
    check.count(n=n, batch=batch)
    unknown = next((key for key in options if key not in taken), None)
    if unknown is not None and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        raise UserError(f"must be an option of {type(pipeline).__name__}: {', '.join(taken)}", argument=unknown)
    found = []
    for block, low in enumerate(range(0, n, batch)):
        draws = generator(seed, "candidates", block)
        made = pipeline(**{**options, name: batch, "generator": draws, "output_type": "np"})
        found.append(as_candidates(made, where=type(pipeline).__name__)[: n - low])
    return torch.cat(found)


def read_candidates(
    path: str | Path,
    shape: tuple[int, ...] | None = None,
    *,
    skip_bad: bool = False,
    size: int | None = None,
    **table: Any,
) -> Candidates:
    """Candidates in a folder of images, or in any file that `data.files.read_rows` reads; `table` are its keywords.

    `size`: the side of the square to which pictures are resized and cropped.
    `skip_bad` leaves out images that cannot be read or are of another size than `shape` (than most, if not given), and
    rows of an array that are not finite. UserError where nothing is left.
    """
    path = Path(path)
    _require_kind(path, shape)
    if not skip_bad:
        x, layout, _ = read_rows(path, shape=shape, size=size, **table)
        return Candidates(as_candidates(x, shape, where=str(path)), read_names(path, len(x)), [], layout)
    found = _folder(path, shape, size) if path.is_dir() else _rows(path, shape, table)
    for name, reason in found.skipped:
        log.info("skipped %s: %s", name, reason)
    if not len(found.x):
        why = f", and the first skipped {found.skipped[0][1]}" if found.skipped else ""
        wanted = "rows without NaN" if shape is None or len(shape) == 1 else f"images of shape {shape}"
        raise UserError(f"must hold {wanted}{why}", argument=str(path), hint="mend or replace what was skipped")
    return found


def _require_kind(path: Path, shape: tuple[int, ...] | None) -> None:
    """Refuse a file of a kind that never holds such rows: tables hold no images, pictures no rows."""
    kinds = suffixes(None if shape is None else "image" if len(shape) == 3 else "vector")
    if path.is_file() and path.suffix.lower() not in kinds:
        folder = "" if shape is not None and len(shape) == 1 else "a folder of images or "
        raise UserError(f"must be {folder}a file of {', '.join(kinds)}", argument=str(path))


def _folder(path: Path, shape: tuple[int, ...] | None, size: int | None) -> Candidates:
    read, skipped, found = [], [], listing(path)
    if found.passed_over:
        log.warning("%s: %s passed over", path, found.passed_over)
    for file in found.files:
        name = relative(file, path)
        try:
            read.append((name, as_candidates(_picture(file, shape, size), shape)))
        except UserError as error:
            skipped.append((name, str(error)))
    sizes = Counter(tuple(x.shape[2:]) for _, x in read)
    most = sizes.most_common(1)[0][0] if sizes else ()
    good = [(name, x) for name, x in read if tuple(x.shape[2:]) == most]
    for name, x in read:
        if tuple(x.shape[2:]) != most:
            h, w, height, width = *x.shape[2:], *most
            skipped.append((name, f"is {w} x {h} pixels, most are {width} x {height}"))
    channels = max((x.shape[1] for _, x in good), default=1)
    images = [x.expand(-1, channels, -1, -1) for _, x in good]
    return Candidates(torch.cat(images) if images else torch.zeros(0), [name for name, _ in good], sorted(skipped))


def _picture(file: Path, shape: tuple[int, ...] | None, size: int | None) -> Tensor:
    """One picture (1, C, H, W), of any shape where none is given."""
    if shape is not None and len(shape) == 3:
        return read_picture(file, shape=shape, size=size)
    return torch.from_numpy(decode(file, size=size))[None]


def _rows(path: Path, shape: tuple[int, ...] | None, table: dict[str, Any]) -> Candidates:
    x, layout, _ = read_rows(path, shape=shape, finite=False, **table)
    good = x.flatten(1).isfinite().all(1) if x.is_floating_point() else torch.ones(len(x), dtype=torch.bool)
    skipped = [(f"row {i}", "holds NaN or infinity") for i in (~good).nonzero().flatten().tolist()]
    names = [name for name, fine in zip(read_names(path, len(x)), good.tolist(), strict=True) if fine]
    kept = x[good]
    kept = as_candidates(kept, shape, where=str(path)) if len(kept) else torch.zeros(0)
    return Candidates(kept, names, skipped, layout)


def _stacked(images: Sequence[Any], where: str) -> np.ndarray:
    """One array of a list of PIL images, arrays or tensors of one size; grey ones keep no channel axis."""
    arrays = [np.asarray(image) for image in images]
    if not arrays:
        return np.zeros((0,), np.float32)
    most = Counter(a.shape for a in arrays).most_common(1)[0][0]
    odd = next((i for i, a in enumerate(arrays) if a.shape != most), None)
    if odd is not None:
        text = f"must have one shape: number {odd} has {arrays[odd].shape}, most have {most}"
        raise UserError(text, argument=where, hint="resize it")
    return np.stack(arrays)
