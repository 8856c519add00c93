"""Reads candidates: from arrays, PIL images, files and folders, and from a diffusers pipeline.

They become (N, C, H, W) float32 in [0, 1], or rows (N, D). A file that cannot be read is an error; with `skip_bad` it
is left out and reported.
"""

import inspect
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
from thalweg.data.files import read_rows
from thalweg.data.formats.base import suffixes
from thalweg.data.validate import arrange, check_images, check_rows


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
    path: str | Path, shape: tuple[int, ...] | None = None, *, skip_bad: bool = False, **how: Any
) -> Candidates:
    """Candidates in a folder of images, or in any file that `data.files.read_rows` reads; `how` are its keywords.

    `skip_bad` leaves out images that cannot be read or are of another size than `shape` (than most, if not given), and
    rows that are not finite. UserError where nothing is left.
    """
    path = Path(path)
    _require_kind(path, shape)
    found = read_rows(path, shape=shape, skip_bad=skip_bad, **how)
    x = as_candidates(found.x, shape, where=str(path))
    return Candidates(x, found.names, [(each.name, each.reason) for each in found.left_out], found.layout)


def _require_kind(path: Path, shape: tuple[int, ...] | None) -> None:
    """Refuse a file of a kind that never holds such rows: pictures hold no rows, CSV no images."""
    kinds = suffixes(None if shape is None else "image" if len(shape) == 3 else "vector")
    kinds += [".parquet"] if shape is not None and len(shape) == 3 else []
    if path.is_file() and path.suffix.lower() not in kinds:
        folder = "" if shape is not None and len(shape) == 1 else "a folder of images or "
        raise UserError(f"must be {folder}a file of {', '.join(kinds)}", argument=str(path))


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
