"""Pictures, by the one rule that every command reads them by: what a viewer shows, in 8 bits, grey or RGB.

1. One frame. A file of several (animated GIF, PNG or WebP, TIFF of several pages) is refused; of the multi-picture JPEG
   of cameras the first is read, as viewers show it.
2. More than 8 bits: the upper 8 of 16. 32-bit integers and floating point are refused, as nothing says what is white.
3. Transparency: laid on white, or of masks on black (`background`). Colours that alpha hides do not count.
4. Palettes, one bit, CMYK and YCbCr become grey or RGB as Pillow converts them, without colour profiles; other spaces,
   such as Lab, are refused. Grey of colour is .299 R + .587 G + .114 B.
5. The orientation that EXIF (or XMP) gives is applied.
6. `size`: the shorter side becomes so many pixels, by bicubic interpolation with antialiasing, and the middle is kept.

Sizes are read from headers before memory is taken. `probe` and `decode` have no state: threads may call them.
"""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.formats.base import ArrayFormat, reading_array

if TYPE_CHECKING:
    from PIL import Image

LIMIT_PIXELS = 64_000_000  # the most one image may declare before it is decoded
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "PPM", "GIF")  # Pillow's; it takes more, some by other programs
WHITE, BLACK = 255, 0
GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
SEVERAL = ("GIF", "PNG", "WEBP", "TIFF")  # formats of which several frames are refused
EXIF_KEYS = ("exif", "Raw profile type exif", "Raw profile type APP1", "xmp", "XML:com.adobe.xmp")
ORIENTATION = 0x0112
REDUCE = 2  # a JPEG that is resized is decoded at no less than twice the size


class ImageHeader(NamedTuple):
    """What the header of a picture says.

    Args:
        width: In pixels, as it is shown.
        height: The same.
        grey: Whether it has no colour.
        alpha: Whether it may have transparent parts.
        turned: Whether its orientation is not as stored.
        deep: Whether it has more than 8 bits a channel.
    """

    width: int
    height: int
    grey: bool
    alpha: bool
    turned: bool
    deep: bool


class Images(ArrayFormat):
    """One image a file."""

    suffixes = IMAGE_SUFFIXES
    holds = ("image",)

    def read(self, path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
        return decode(path, channels=shape[0] if shape is not None and len(shape) == 3 else None)[None]


def is_image(path: Path) -> bool:
    """Whether a file's ending is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_broken(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a link to what is not there."""
    return os.path.islink(path) and not os.path.exists(path)


def probe(file: str | Path | IO[bytes], *, where: str | None = None) -> ImageHeader:
    """What a picture's header says; UserError for one that the rule refuses, `where` its name."""
    with _opened(file, where) as image:
        width, height = image.size
        turn = _orientation(image)
        if turn >= 5:  # turned by 90 degrees
            width, height = height, width
        deep = image.mode.startswith("I")
        return ImageHeader(width, height, image.mode in GREY, image.has_transparency_data, turn > 1, deep)


def decode(
    file: str | Path | IO[bytes],
    *,
    channels: int | None = None,
    size: int | None = None,
    background: int = WHITE,
    where: str | None = None,
) -> np.ndarray:
    """A picture as uint8 (C, H, W), by the rule above.

    Args:
        file: A path, or an open file.
        channels: 1 for grey, 3 for RGB; None: as it is stored.
        size: The side of the square to which it is resized and cropped; None: as large as it is.
        background: What shows through transparent parts: 255 for white, 0 for black.
        where: What errors call it; by default the path.

    Raises:
        UserError: It is damaged, too large, or of a kind that the rule refuses.
    """
    with _opened(file, where) as image:
        if size is not None and image.format == "JPEG":
            scale = REDUCE * size / min(image.size)
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        return as_pixels(image, channels=channels, size=None if size is None else (size, size), background=background)


def as_pixels(
    image: "Image.Image",
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    background: int = WHITE,
) -> np.ndarray:
    """An open picture as uint8 (C, H, W): rules 2 to 6. `size`: (width, height), which it is to fill."""
    image.load()  # some formats give the orientation after the pixels
    turn = _orientation(image)
    grey = channels == 1 if channels is not None else image.mode in GREY
    shown = _in_8_bits(image, background).convert("L" if grey else "RGB")
    if turn > 1:
        shown = shown.transpose(_transposes()[turn - 2])
    if size is not None:
        shown = fill(shown, size)
    pixels = np.asarray(shown, np.uint8).reshape(shown.height, shown.width, -1)
    return np.array(pixels.transpose(2, 0, 1), order="C")  # a copy: Pillow's memory is not to be written


def fill(image: "Image.Image", size: tuple[int, int]) -> "Image.Image":
    """The middle of an image, as large as (width, height) allow, resized to them: bicubic, with antialiasing."""
    from PIL import Image

    (width, height), (wanted_width, wanted_height) = image.size, size
    scale = min(width / wanted_width, height / wanted_height)
    w, h = scale * wanted_width, scale * wanted_height
    left, top = (width - w) / 2, (height - h) / 2
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def _in_8_bits(image: "Image.Image", background: int) -> "Image.Image":
    """The image in 8 bits a channel, without transparency."""
    from PIL import Image

    if image.mode.startswith("I"):
        deep = np.asarray(image)
        pixels, hidden = (deep >> 8).astype(np.uint8), image.info.get("transparency")
        if isinstance(hidden, int):
            pixels[deep == hidden] = background
        return Image.fromarray(pixels)
    if not image.has_transparency_data:
        return image
    image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    base = Image.new("RGBA", image.size, (background, background, background, 255))
    base.alpha_composite(image)
    return base.convert("RGB")


@contextmanager
def _opened(file: str | Path | IO[bytes], where: str | None) -> Iterator["Image.Image"]:
    """The picture, its header read and within the rule; whatever a decoder raises becomes one line."""
    from PIL import Image

    where = where or (os.fspath(file) if isinstance(file, str | Path) else "the image")
    condition = f"must have at most {LIMIT_PIXELS // 10**6} megapixels to be decoded"
    too_large = UserError(condition, argument=where, hint="scale it down")
    if isinstance(file, str | Path) and is_broken(file):
        hint = "put the file back, or remove the link"
        raise DamagedFile(f"a link to {os.readlink(file)}, which is not there", argument=where, hint=hint)
    with reading_array(where), _stream(file) as stream:
        if not stream.read(1):
            raise DamagedFile("an empty file, of 0 bytes", argument=where, hint="remove it, or fetch it again")
        stream.seek(0)
        try:
            image = Image.open(stream, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise too_large from error
        with image:
            if math.prod(image.size) > LIMIT_PIXELS:
                raise too_large
            require_shown(image, where)
            yield image


def _stream(file: str | Path | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """An open file. By a path Pillow would map plain TIFFs to memory, and then misread those that are turned."""
    return open(file, "rb") if isinstance(file, str | Path) else nullcontext(file)


def require_shown(image: "Image.Image", where: str) -> None:
    """UserError for an open picture that rules 1, 2 or 4 refuse."""
    unstated = image.mode.startswith("F") or (image.mode == "I" and image.format not in ("PNG", "PPM"))
    if unstated:
        what = f"must have 8 or 16 bits a channel: nothing says what is white in mode {image.mode}"
        raise UserError(what, argument=where, hint="save it with 8 or 16 bits, or as npy of floats in [0, 1]")
    if image.mode not in (*GREY, *COLOUR):
        raise UserError(f"must be grey or RGB, not of mode {image.mode}", argument=where, hint="convert it to RGB")
    if image.format in SEVERAL and _has_second_frame(image):
        what = "must be one picture, and holds several frames"
        raise UserError(what, argument=where, hint="save the one that is meant as a file of its own")


def _has_second_frame(image: "Image.Image") -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _orientation(image: "Image.Image") -> int:
    """EXIF's number, 1 to 8, of how an open picture is turned when it is shown; 1 where nothing says or it is unread.

    Of a TIFF Pillow has turned the pixels and the size. PNG is asked only where it has such data: it would be decoded.
    """
    if image.format == "TIFF" or not any(key in image.info for key in EXIF_KEYS):
        return 1
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged data beside the pixels, of which a parser raises almost any kind
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _transposes() -> "tuple[Image.Transpose, ...]":
    """What orientations 2 to 8 mean."""
    from PIL.Image import Transpose as T

    return (
        T.FLIP_LEFT_RIGHT,
        T.ROTATE_180,
        T.FLIP_TOP_BOTTOM,
        T.TRANSPOSE,
        T.ROTATE_270,
        T.TRANSVERSE,
        T.ROTATE_90,
    )
