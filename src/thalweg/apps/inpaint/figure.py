"""The picture of repaired images: what was given, the completions in order, and where they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.evaluate.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = np.array([0.36, 0.47, 0.62])  # a colour that no grey image has
GAP, INCHES = 2, 0.62


def repairs(
    given: Float[Tensor, "b c h w"],
    completions: Float[Tensor, "n b c h w"],
    uncertainty: Float[Tensor, "b c h w"] | None,
    *,
    observed: Bool[Tensor, "b c h w"] | None = None,
    truth: Float[Tensor, "b c h w"] | None = None,
) -> Figure:
    """A row an image: the truth (if known), what was given (missing pixels in blue), completions best first, and the
    standard deviation over them (if known), 0 black to 0.5 (what a pixel that is 0 or 1 with equal chance has) bright.
    """
    from matplotlib import colormaps

    shown = _rgb(given)
    if observed is not None:
        shown = np.where(observed.all(1).numpy()[..., None], shown, MISSING)
    columns, titles = (
        [shown, *(_rgb(x) for x in completions)],
        ["given", *(f"{k + 1}" for k in range(len(completions)))],
    )
    if uncertainty is not None:
        columns.append(colormaps["magma"](np.clip(2 * uncertainty.amax(1).numpy(), 0, 1))[..., :3])
        titles.append("uncertain")
    if truth is not None:
        columns, titles = [_rgb(truth), *columns], ["truth", *titles]
    rows, count = len(shown), len(columns)
    high = max(x.shape[1] for x in columns)
    wide = max(x.shape[2] for x in columns)
    sheet = np.full((rows * (high + GAP) + GAP, count * (wide + GAP) + GAP, 3), 0.55)
    for j, column in enumerate(columns):
        for i, image in enumerate(_to_size(column, high, wide)):
            top, left = GAP + i * (high + GAP), GAP + j * (wide + GAP)
            sheet[top : top + high, left : left + wide] = image
    inches = INCHES * max(1.0, wide / 40)
    figure = new_figure(inches * count, inches * rows * high / wide + 0.25)
    ax = figure.add_axes((0, 0, 1, 1 - 0.25 / figure.get_figheight()))
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    for j, title in enumerate(titles):
        ax.text(GAP + j * (wide + GAP) + wide / 2, -1, title, ha="center", va="bottom", fontsize=8)
    return figure


def _rgb(x: Tensor) -> np.ndarray:
    """(B, H, W, 3) in [0, 1]."""
    pixels = x.detach().float().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels


def _to_size(x: np.ndarray, high: int, wide: int) -> np.ndarray:
    """A smaller image (one that was down-sampled) shown with larger pixels."""
    return x.repeat(high // x.shape[1], axis=1).repeat(wide // x.shape[2], axis=2)
