"""The landscape as an animated GIF that repeats: chains that descend, or the images that they become."""

import io
from typing import TYPE_CHECKING

import numpy as np
import torch

from thalweg.apps.landscape.figures import COLOURS, HOLE, INK, ORANGE, TEAL, WHITE, pixels
from thalweg.apps.landscape.film import Film
from thalweg.apps.landscape.survey import Survey
from thalweg.evaluate.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.ImageFile import ImageFile

BETWEEN = 2  # pictures a frame: positions and heights are mixed
HOLD = 1800  # milliseconds that the last picture stays
DPI = 80


def gif(found: Survey, shown: Film | None, *, title: str) -> bytes:
    """The GIF's bytes. `shown`: the frames; None, for images: the images of twelve chains and their energies."""
    from PIL.Image import Dither

    pictures = _image_frames(found, title) if shown is None else _frames(found, shown, title)
    first, *rest = pictures
    palette = pictures[-1].convert("RGB").quantize(64)
    quantised = [p.convert("RGB").quantize(palette=palette, dither=Dither.NONE) for p in (first, *rest)]
    out = io.BytesIO()
    times = [90] * (len(quantised) - 1) + [HOLD]
    quantised[0].save(
        out, format="GIF", save_all=True, append_images=quantised[1:], duration=times, loop=0, optimize=True
    )
    return out.getvalue()


def _rendered(figure: "Figure") -> "ImageFile":
    """The figure as an image."""
    from PIL import Image

    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor="white")
    return Image.open(out)


def _frames(found: Survey, film: Film, title: str) -> "list[ImageFile]":
    heights = [film.heights(k, 110).double().numpy() for k in range(len(film.surfaces))]
    surface = film.surfaces[-1]
    s, t = (
        np.linspace(float(a[0]), float(a[-1]), n)
        for a, n in zip((surface.s, surface.t), heights[0].shape[::-1], strict=True)
    )
    shape = (t[-1] - t[0]) / (s[-1] - s[0])
    pictures, last = [], len(film.shown) - 1
    for step in range(last * BETWEEN + 1):
        f, share = min(step // BETWEEN, last), (step % BETWEEN) / BETWEEN
        then = min(f + 1, last)
        u = (1 - share) * heights[film.shown[f]] + share * heights[film.shown[then]]
        x = torch.lerp(film.points[f], film.points[then], share)
        figure = new_figure(7.0, 6.4 * shape + 0.7, layout="constrained")
        ax = figure.subplots()
        ax.set_facecolor(HOLE)
        ax.contourf(s, t, np.ma.masked_invalid(u), levels=np.linspace(0, 1, 21), cmap=COLOURS, extend="max")
        if found.in_plane:
            ax.scatter(*found.data.T.numpy(), s=3, color=WHITE, alpha=0.35, linewidths=0)
        tail = film.points[max(0, f - 3) : f + 1]
        for k in range(tail.shape[1]):
            ax.plot(*torch.cat([tail[:, k], x[k : k + 1]]).T.numpy(), color=TEAL, linewidth=1, alpha=0.7)
        ax.scatter(*x.T.numpy(), s=22, color=TEAL, edgecolors=INK, linewidths=0.5, zorder=4)
        sigma = film.sigmas[film.shown[f]]
        ax.set_title(title + ("" if sigma is None else f", noise σ = {sigma:.2f}"), fontsize=11, color=INK, loc="left")
        ax.set(aspect="equal", xlim=(s[0], s[-1]), ylim=(t[0], t[-1]), xticks=[], yticks=[])
        pictures.append(_rendered(figure))
    return pictures


def _image_frames(found: Survey, title: str) -> "list[ImageFile]":
    """Twelve chains' pictures on the right, their energies over the noise on the left."""
    trace, pictures = found.trace, []
    level = trace.level.numpy() + (0 if trace.noisy else 1)
    u = trace.u.numpy()
    for f in range(len(level)):
        figure = new_figure(8.0, 4.3, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
        left.plot(level[: f + 1], u[: f + 1], color=ORANGE, linewidth=0.8, alpha=0.6)
        left.scatter(np.full(u.shape[1], level[f]), u[f], s=12, color=ORANGE, zorder=3)
        left.set(xscale="log", xlim=(level.max() * 1.1, level.min() * 0.9) if trace.noisy else (0.9, level.max() * 1.1))
        finite = u[np.isfinite(u)]
        left.set_ylim(finite.min() - 0.05 * np.ptp(finite), finite.max() + 0.05 * np.ptp(finite))
        left.set_xlabel("noise σ, falling to the right" if trace.noisy else "step of the chain", fontsize=9)
        left.set_ylabel(("−log p" if found.normalised else "energy") + " (nats)", fontsize=9)
        left.tick_params(labelsize=8)
        left.grid(alpha=0.25)
        rows = [np.concatenate([pixels(x) for x in trace.x[f, 4 * r : 4 * r + 4]], axis=1) for r in range(3)]
        right.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=1)
        right.set_axis_off()
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
        pictures.append(_rendered(figure))
    return pictures
