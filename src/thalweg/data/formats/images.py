"""Pictures as Pillow reads them, one a file or a folder of them, as uint8 (N, C, H, W)."""

import math
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from thalweg.core.errors import UserError
from thalweg.data.formats.base import ArrayFormat, check_size, reading_array

LIMIT_PIXELS = 64_000_000  # the most one image may declare before it is decoded
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


class Images(ArrayFormat):
    """One image a file."""

    suffixes = IMAGE_SUFFIXES
    holds = ("image",)

    def read(self, path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
        return read_images([path], shape)


def image_files(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, sorted by name; hidden files are passed over."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(files)


def read_folder(folder: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    """The images that lie directly in a folder; UserError where there are none."""
    files = image_files(folder)
    if not files:
        what = f"no {', '.join(IMAGE_SUFFIXES)} directly in this folder"
        raise UserError(what, argument=str(folder), hint="name the one that holds them")
    return read_images(files, shape)


def read_images(files: list[Path], shape: tuple[int, ...] | None) -> np.ndarray:
    """Decode images of one size to uint8 (N, C, H, W); sizes and colours are read from all headers first.

    `shape`: (C, H, W) picks grey or colour; else all are grey if none has colour.
    """
    from PIL import Image

    channels = shape[0] if shape is not None and len(shape) == 3 else None
    probes = [probe(file) for file in files]
    (size, _), *_ = Counter(s for s, _ in probes).most_common(1)
    odd = next((i for i, (s, _) in enumerate(probes) if s != size), None)
    if odd is not None:
        (w, h), (width, height) = probes[odd][0], size
        what = f"is {w} x {h} pixels, most are {width} x {height}"
        raise UserError(what, argument=str(files[odd]), hint="resize it")
    grey = channels == 1 or (channels != 3 and all(mode in ("1", "L", "LA") for _, mode in probes))
    rows = (len(files), size[1], size[0], 1 if grey else 3)
    check_size(math.prod(rows), str(files[0].parent))
    pixels = np.empty(rows, np.uint8)
    for i, file in enumerate(files):
        with reading_array(file), Image.open(file) as image:
            pixels[i] = np.asarray(image.convert("L" if grey else "RGB")).reshape(rows[1:])
    return pixels.transpose(0, 3, 1, 2)


def probe(file: Path) -> tuple[tuple[int, int], str]:
    """An image's (width, height) and mode from its header; more than 8 bits a pixel is refused."""
    from PIL import Image

    condition = f"must have at most {LIMIT_PIXELS // 10**6} megapixels to be decoded"
    too_large = UserError(condition, argument=str(file), hint="scale it down")
    with reading_array(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                size, mode = image.size, image.mode
        except Image.DecompressionBombError as error:
            raise too_large from error
    if math.prod(size) > LIMIT_PIXELS:
        raise too_large
    if mode.startswith(("I", "F")):
        hint = "save it as 8-bit, or use npy"
        raise UserError(f"must have 8 bits a pixel, not mode {mode}", argument=str(file), hint=hint)
    return size, mode
