"""A PNG file as coloured half-blocks, each two pixels; without colours as characters of several densities."""

from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageChops, ImageOps
from rich.color import Color
from rich.style import Style
from rich.text import Text

GAP = 128  # the grey between the tiles of `evaluate.pictures.grid`
TILE = 14  # pixels of a tile below which a digit is not read
SHADES = " .:-=+*#%@"
MOST = 16_000_000  # pixels of a file that is opened


def lines(path: Path, columns: int, rows: int, *, colours: bool = True) -> list[Text]:
    """The picture in at most so many columns and rows, whole tiles of a grid; none where it cannot be read."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return []
    return _drawn(path, changed, columns, rows, colours) if columns > 1 and rows > 0 else []


@lru_cache(maxsize=16)
def _drawn(path: Path, changed: int, columns: int, rows: int, colours: bool) -> list[Text]:
    """The lines of a file as it was when it was last changed."""
    image = _opened(path)
    if image is None:
        return []
    image, is_plot = _of_whole_tiles(image, columns, 2 * rows)
    scale = min(columns / image.width, 2 * rows / image.height)
    width, height = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    height += height % 2
    small = image.resize((width, height), Image.Resampling.BOX)
    if is_plot:  # ink on white, whose points fade into the ground as it shrinks
        small = ImageOps.autocontrast(ImageOps.invert(small), cutoff=(0, 1))
    return [_line(small, y, colours) for y in range(0, height, 2)]


def _opened(path: Path) -> Image.Image | None:
    """The picture in RGB; None where the file is no picture, or a huge one."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB") if image.width * image.height <= MOST else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _line(image: Image.Image, y: int, colours: bool) -> Text:
    upper, lower = (image.crop((0, i, image.width, i + 1)).tobytes() for i in (y, y + 1))
    if not colours:
        greys = (sum(upper[i : i + 3]) + sum(lower[i : i + 3]) for i in range(0, len(upper), 3))
        return Text("".join(SHADES[grey * (len(SHADES) - 1) // (6 * 255)] for grey in greys))
    line = Text(no_wrap=True)
    for (above, below), equal in groupby((upper[i : i + 3], lower[i : i + 3]) for i in range(0, len(upper), 3)):
        line.append("▀" * len([*equal]), _style(above, below))  # few spans are drawn fast
    return line


@lru_cache(maxsize=4096)
def _style(upper: bytes, lower: bytes) -> Style:
    return Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))


def _of_whole_tiles(image: Image.Image, columns: int, rows: int) -> tuple[Image.Image, bool]:
    """The first tiles of a grid, as many as are readable in so many pixels; False.

    Of another picture what is inside its border; whether that is white.
    """
    ends = [_tiles(image, axis) for axis in (0, 1)]
    if all(ends):
        across, down = (each[: max(most // TILE, 1)] for each, most in zip(ends, (columns, rows), strict=True))
        return image.crop((0, 0, across[-1], down[-1])), False
    ground = image.getpixel((0, 0))
    box = ImageChops.difference(image, Image.new("RGB", image.size, ground)).getbbox()
    return image.crop(box), ground == (255, 255, 255)


def _tiles(image: Image.Image, axis: int) -> list[int]:
    """Where the tiles of a grid end along an axis, 0 across; none where the picture is no grid."""
    width, height = image.size
    box = (lambda i: (i, 0, i + 1, height)) if axis == 0 else (lambda i: (0, i, width, i + 1))
    grey = [image.crop(box(i)).getextrema() == ((GAP, GAP),) * 3 for i in range(image.size[axis])]
    if not (grey and grey[0] and grey[-1]):
        return []
    last = [i + 1 for i in range(len(grey)) if grey[i] and not (i + 1 < len(grey) and grey[i + 1])]
    return last[1:]  # the first gap is before the first tile
