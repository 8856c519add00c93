"""Contact sheets: two panels of numbered tiles, A and B, in one PNG of a bounded size.

The two panels have one size, one border and one background, so that nothing but the tiles tells them apart.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from thalweg.core.errors import UserError

MAX_WIDTH, MAX_HEIGHT = 1400, 900  # pixels of a sheet; models shrink larger ones
MARGIN, GAP, HEADING, NUMBER = 12, 4, 34, 14  # pixels
PAPER, INK, SOFT = (236, 236, 236), (20, 20, 20), (90, 90, 90)


class SheetLayout(NamedTuple):
    """Where the tiles of a sheet lie, in pixels; the same for both panels."""

    columns: int
    rows: int
    width: int  # of a tile
    height: int

    @property
    def panel(self) -> tuple[int, int]:
        """Width and height of a panel, with its heading."""
        across = self.columns * (self.width + GAP) + GAP
        return across, HEADING + self.rows * (self.height + NUMBER + GAP) + GAP

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        across, down = self.panel
        return 2 * across + 3 * MARGIN, down + 2 * MARGIN

    def corner(self, panel: int, tile: int) -> tuple[int, int]:
        """Left and top of a tile; panels and tiles count from 0."""
        row, column = divmod(tile, self.columns)
        left = MARGIN + panel * (self.panel[0] + MARGIN) + GAP + column * (self.width + GAP)
        return left, MARGIN + HEADING + GAP + row * (self.height + NUMBER + GAP) + NUMBER


def layout(num: int, height: int, width: int) -> SheetLayout:
    """The layout of panels of `num` tiles of images of that size: the largest whole scale that fits, else a shrink."""
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    across = ((MAX_WIDTH - 3 * MARGIN) // 2 - GAP) // columns - GAP
    down = (MAX_HEIGHT - 2 * MARGIN - HEADING - GAP) // rows - GAP - NUMBER
    scale = min(across / width, down / height, 4.0)
    scale = math.floor(scale) if scale >= 1 else scale
    return SheetLayout(columns, rows, max(1, int(width * scale)), max(1, int(height * scale)))


def draw(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], *, injected: tuple[int, str] | None = None) -> bytes:
    """PNG bytes of a sheet: tiles numbered from 1 in both panels; images in [0, 1] (values outside are cut).

    injected: a panel (0 for A, 1 for B) and a text that is drawn over its tiles, for a control.
    """
    if a.shape != b.shape or a.ndim != 4 or not len(a) or a.shape[1] not in (1, 3):
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError("must be two sets of as many images (n, C, H, W) of one size, C = 1 or 3", argument=shapes)
    if not (a.isfinite().all() and b.isfinite().all()):
        raise UserError("must be finite", argument="images")
    where = layout(len(a), a.shape[2], a.shape[3])
    sheet = Image.new("RGB", where.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    heading, small = ImageFont.load_default(size=24), ImageFont.load_default(size=11)
    for panel, images in enumerate((a, b)):
        across, down = where.panel
        left = MARGIN + panel * (across + MARGIN)
        pen.rectangle((left, MARGIN, left + across - 1, MARGIN + down - 1), outline=SOFT)
        pen.text((left + 8, MARGIN + 3), f"Panel {'AB'[panel]}", fill=INK, font=heading)
        for tile, pixels in enumerate(_pixels(images)):
            x, y = where.corner(panel, tile)
            pen.text((x, y - NUMBER), str(tile + 1), fill=SOFT, font=small)
            sheet.paste(_resized(pixels, where), (x, y))
    if injected is not None:
        _write_over(sheet, where, *injected)
    out = io.BytesIO()
    sheet = sheet if a.shape[1] == 3 else sheet.convert("L")  # a third of the bytes
    sheet.save(out, format="PNG", compress_level=3)
    return out.getvalue()


def _pixels(images: Tensor) -> np.ndarray:
    """(n, H, W, 3) uint8."""
    x = (images.detach().cpu().to(torch.float32).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return x.repeat(3, axis=3) if x.shape[3] == 1 else x


def _resized(pixels: np.ndarray, where: SheetLayout) -> Image.Image:
    """The tile; whole pixels where it grows, averages where it shrinks."""
    grows = where.width >= pixels.shape[1]
    how = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    return Image.fromarray(pixels).resize((where.width, where.height), how)


def _write_over(sheet: Image.Image, where: SheetLayout, panel: int, text: str) -> None:
    """A text in black on white across the middle of a panel, in as many lines as it needs."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=22)
    left, wide = where.corner(panel, 0)[0], where.panel[0] - 2 * GAP
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and pen.textlength(longer, font=font) > wide - 16:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    top = where.corner(panel, where.columns * (where.rows // 2))[1]
    top = max(where.corner(panel, 0)[1], top - 14 * len(lines))
    pen.rectangle((left, top, left + wide - 1, top + 28 * len(lines) + 8), fill=(255, 255, 255))
    for i, line in enumerate(lines):
        pen.text((left + 8, top + 4 + 28 * i), line, fill=(0, 0, 0), font=font)
