"""Pictures of an evaluation as PNG bytes: grids of samples, strips of energies, curves of training.

Figures are matplotlib objects without its global state; colours hold on a light and on a dark page, because
every picture brings its own light background.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2563a8", "#c2571a", "#7a8490"


def grid(images: Float[Tensor, "n c h w"], *, columns: int = 10, scale: int = 2, gap: int = 2) -> bytes:
    """PNG bytes of a grid, row by row; images in [0, 1] (values outside are cut), one or three channels."""
    from PIL import Image

    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images have shape {tuple(images.shape)}: want (n, C, H, W) with n > 0 and C = 1 or 3")
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite: nothing to draw")
    n, _, h, w = images.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    pixels = _bytes(images)
    if pixels.shape[3] == 1:
        pixels = pixels.repeat(3, axis=3)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 128, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[top : top + h, left : left + w] = picture
    image = Image.fromarray(sheet)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def image_png(x: Float[Tensor, "c h w"]) -> bytes:
    """PNG bytes of one image in [0, 1] (values outside are cut), grey where it has one channel."""
    from PIL import Image

    pixels = _bytes(x[None])[0]
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, format="PNG")
    return out.getvalue()


def _bytes(images: Float[Tensor, "n c h w"]) -> np.ndarray:
    """(n, H, W, C) uint8."""
    return (images.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def png(figure: Figure | bytes) -> bytes:
    """PNG bytes of a matplotlib figure at 110 dots an inch; bytes pass through."""
    if isinstance(figure, bytes):
        return figure
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, facecolor="white")
    return out.getvalue()


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A matplotlib figure without global state, in inches; `options` are those of the class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list]:
    figure = new_figure(width, height, layout="constrained")
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def energy_strips(energies: dict[str, Tensor]) -> Figure:
    """One histogram a set, the first in blue, on one axis: energy minus the first set's median, nats,
    symmetric-log scale.
    """
    first = next(iter(energies.values()))
    centre = first.median()
    shifted = {name: (u - centre).numpy() for name, u in energies.items()}
    linear = max(float(first.quantile(0.9) - first.quantile(0.1)), 1e-6)
    low = min(float(v.min()) for v in shifted.values())
    high = max(float(v.max()) for v in shifted.values())
    bins = linear * np.sinh(np.linspace(np.arcsinh(low / linear), np.arcsinh(high / linear) + 1e-9, 90))
    figure, axes = _figure(8.4, 0.5 * len(shifted) + 0.9, len(shifted))
    for ax, (name, values) in zip(axes, shifted.items(), strict=True):
        colour = BLUE if ax is axes[0] else ORANGE if name == "samples" else GREY
        ax.hist(values, bins=bins, color=colour)
        ax.axvline(0, color=BLUE, linewidth=0.8, linestyle=":")
        ax.set_yticks([])
        ax.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, fontsize=10)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
    axes[-1].set_xscale("symlog", linthresh=linear)
    axes[-1].set_xlim(bins[0] - 0.2 * linear, bins[-1] * 1.1 + 0.2 * linear)
    axes[-1].tick_params(labelsize=8)
    axes[-1].set_xlabel(f"energy minus the median of {next(iter(energies))} (nats; low = likely)")
    return figure


def curves(history: list[dict[str, float]], keys: tuple[str, ...]) -> Figure | None:
    """Each key of the metrics against the step, one panel a key; None where no row has any of them."""
    found = {k: [(r["step"], r[k]) for r in history if _plain(r.get(k)) and "step" in r] for k in keys}
    found = {k: v for k, v in found.items() if len(v) > 1}
    if not found:
        return None
    figure, axes = _figure(8.4, 1.6 * len(found) + 0.4, len(found))
    for ax, (key, points) in zip(axes, found.items(), strict=True):
        steps, values = np.array(points).T
        ax.plot(steps, values, color=BLUE, linewidth=1.2)
        ax.set_ylim(*_window(values))
        ax.set_ylabel(key.replace("_", " "))
        ax.grid(alpha=0.25)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[-1].set_xlabel("training step")
    return figure


def scatter(samples: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> Figure:
    """Samples over real rows (if there are any) in their first two columns; a single column is set against zero."""
    samples, real = (F.pad(x, (0, 1)) if x.shape[1] == 1 else x for x in (samples, real))
    figure, (ax,) = _figure(5.2, 5.2)
    if len(real):
        ax.scatter(*real[:, :2].T.numpy(), s=8, color=GREY, alpha=0.5, label="real, unseen", linewidths=0)
    ax.scatter(*samples[:, :2].T.numpy(), s=8, color=ORANGE, alpha=0.6, label="samples", linewidths=0)
    ax.set_xlabel("first column")
    ax.set_ylabel("second column")
    ax.legend(frameon=False)
    return figure


def agreement(network: Tensor, ode: Tensor) -> Figure:
    """The network's log p of each input against the ODE's, nats, with the diagonal."""
    figure, (ax,) = _figure(4.4, 4.2)
    ends = [float(min(network.min(), ode.min())), float(max(network.max(), ode.max()))]
    ax.plot(ends, ends, color=GREY, linewidth=0.8, linestyle=":")
    ax.scatter(ode.numpy(), network.numpy(), s=10, color=BLUE, linewidths=0)
    ax.set_xlabel("log p by the ODE (nats)")
    ax.set_ylabel("log p by the network (nats)")
    ax.grid(alpha=0.25)
    return figure


def _plain(value: object) -> bool:
    """Whether a metric is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _window(values: np.ndarray) -> tuple[float, float]:
    """Axis limits that ignore the first steps' wild values: the last four fifths, with a margin."""
    kept = values[len(values) // 5 :]
    low, high = np.quantile(kept, [0.0, 0.99])
    margin = 0.1 * max(high - low, 1e-9)
    return float(low - margin), float(high + margin)
