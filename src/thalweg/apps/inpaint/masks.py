"""Masks from a PNG, an array, a box or a word; true where a pixel is observed.

    "box:7,7,21,21"          missing: columns 7 to 20 and rows 7 to 20 (left, top, right, bottom; the ends not included)
    "right-half", …          missing: right-half, left-half, top-half, bottom-half
    "random:0.75"            missing: that share of the pixels, drawn anew for each image
    "all", "none"            missing: everything, nothing
    mask.png, mask.npy       **white, or true: missing**; black, or 0: observed. The convention of in-painting tools.

A stored mask holds 0 and 1, or 0 and 255. A grey above one half counts as white, and a warning says so. In a mask of
several channels a pixel is missing where any channel is white. A picture is read as images are (`data.formats.images`),
but for its transparent parts: these count as black, so that the mask of a layer is what is painted white on it.
"""

import logging
import math
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.columns.layout import Layout
from thalweg.data.files import is_table, read_rows
from thalweg.data.formats.images import is_image, probe

log = logging.getLogger("thalweg")
WORDS = ("right-half", "left-half", "top-half", "bottom-half", "all", "none")
KINDS = f"{', '.join(WORDS)}, random:SHARE, box:LEFT,TOP,RIGHT,BOTTOM, or a .png or .npy file"


def observed(
    mask: str | Path, shape: tuple[int, ...], num_images: int, *, seed: int = 0, layout: Layout | None = None
) -> Bool[Tensor, "n *d"]:
    """Which pixels of each of `num_images` images of `shape` are observed; UserError for a mask that cannot be read.

    `layout`: the columns of the model's rows, by which a mask in a table is matched.
    """
    text = str(mask)
    kind, _, rest = text.partition(":")
    word, path = text in WORDS or kind in ("box", "random"), Path(mask)
    if len(shape) != 3 and (word or not text or not path.exists()):
        reason = f"must be a file of marks, as the model is of rows of {math.prod(shape)} numbers, not of images"
        hint = "give an .npy or a table; on the command line gaps means what the table lacks"
        raise UserError(reason, argument="mask", value=text, hint=hint)
    if word:
        if kind == "random":
            return _random(text, rest, shape, num_images, seed)
        missing = _box(text, rest, shape) if kind == "box" else _half(text, shape)
        return ~missing.expand(num_images, *shape)
    if not text or not path.exists():
        raise UserError(f"must be one of {KINDS}", argument="mask", value=text)
    return ~_stored(path, shape, num_images, layout)


def _half(word: str, shape: tuple[int, ...]) -> Tensor:
    missing, (height, width) = torch.zeros(shape, dtype=torch.bool), shape[1:]
    part = {
        "right-half": (slice(None), slice(width // 2, None)),
        "left-half": (slice(None), slice(None, width // 2)),
        "bottom-half": (slice(height // 2, None), slice(None)),
        "top-half": (slice(None, height // 2), slice(None)),
        "all": (slice(None), slice(None)),
        "none": (slice(0), slice(0)),
    }[word]
    missing[:, part[0], part[1]] = True
    return missing


def _box(text: str, rest: str, shape: tuple[int, ...]) -> Tensor:
    try:
        left, top, right, bottom = (int(word) for word in rest.split(","))
    except ValueError as error:
        wanted = "must be four whole numbers, box:LEFT,TOP,RIGHT,BOTTOM"
        raise UserError(wanted, argument="mask", value=text) from error
    height, width = shape[1:]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        wanted = f"must have 0 <= left < right <= {width} and 0 <= top < bottom <= {height}"
        raise UserError(wanted, argument="mask", value=text)
    missing = torch.zeros(shape, dtype=torch.bool)
    missing[:, top:bottom, left:right] = True
    return missing


def _random(text: str, rest: str, shape: tuple[int, ...], num_images: int, seed: int) -> Tensor:
    """Image i's mask depends on (seed, i) alone; exactly the share is missing, to the nearest pixel."""
    try:
        share = float(rest)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        wanted = "must name the share that is missing, a number in [0, 1], as random:0.75"
        raise UserError(wanted, argument="mask", value=text)
    pixels = shape[1] * shape[2]
    known = torch.zeros(num_images, 1, pixels, dtype=torch.bool)
    for i, row in enumerate(known):
        row[0, torch.randperm(pixels, generator=generator(seed, "mask", i))[round(share * pixels) :]] = True
    return known.reshape(num_images, 1, *shape[1:]).expand(num_images, *shape)


def _stored(path: Path, shape: tuple[int, ...], num_images: int, layout: Layout | None) -> Tensor:
    """Where a stored mask is white: one mask for all images, or one each."""
    of_columns = layout.of_marks() if layout is not None and path.is_file() and is_table(path) else None
    size = shape if len(shape) == 1 and of_columns is None else None
    found = read_rows(path, layout=of_columns, shape=size, bounded=False).x
    if len(shape) == 1 and layout is not None and found.shape[1:] != shape:
        found = layout.widened(found)  # a mark a column, of which one of categories takes several numbers
    if len(shape) == 3:
        found = found[None, None] if found.ndim == 2 else found
        wanted, size = shape[1:], tuple(found.shape[2:])
    else:
        wanted, size = shape, tuple(found.shape[1:])
    if size != wanted:
        asked, got = (" x ".join(map(str, reversed(s))) for s in (wanted, size))
        wrong = f"must be a mask of {asked}, as the model's data, not of {got}"
        raise UserError(wrong, argument=str(path), hint="resize the mask")
    if len(found) not in (1, num_images):
        noun = "image" if len(shape) == 3 else "row"
        wrong = f"must hold one mask, or {num_images}, one for each {noun}, not {len(found)}"
        raise UserError(wrong, argument=str(path))
    missing = _white(found, path)
    if is_image(path) and not bool(missing.any()) and probe(path).alpha:
        wrong = "must have white where pixels are missing: transparent parts count as black, and no opaque one is white"
        raise UserError(wrong, argument=str(path), hint="paint it white")
    missing = missing.any(1, keepdim=True) if len(shape) == 3 else missing
    return missing.expand(num_images, *shape)


def _white(found: Tensor, path: Path) -> Tensor:
    """Where the mask is above half of white, which is 1 or 255; UserError where it is a mask of neither kind."""
    low, high = (float(v) for v in found.aminmax())
    white = 1 if high <= 1 else 255
    odd = low < 0 or high > 255 or (low == high and high not in (0, white))
    picture = path.is_dir() or is_image(path)
    if odd or (white == 255 and high <= white / 2 and not picture):  # numbers of classes, say
        values = f"{low:g} to {high:g}" if low < high else f"{low:g} everywhere"
        wrong = f"must hold 0 and 1, or 0 and 255, where white is missing, not {values}"
        raise UserError(wrong, argument=str(path))
    if bool(((found > 0) & (found < white)).any()):
        log.warning("%s: greys in the mask; more than half of white (%g of %g) is missing", path, white / 2, white)
    return found > white / 2
