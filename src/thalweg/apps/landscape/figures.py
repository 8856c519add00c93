"""The picture of a landscape: contours with data, chains and basins, and the energies along paths."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thalweg.apps.landscape.basins import Basins
from thalweg.apps.landscape.paths import WALK
from thalweg.apps.landscape.surface import Surface
from thalweg.apps.landscape.survey import Survey
from thalweg.evaluate.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "magma"  # perceptually uniform; dark = low, and what is cut at the top is the colour of paper
ORANGE, BLUE, GREY, WHITE, INK = "#e8641b", "#2563a8", "#7a8490", "#ffffff", "#1d2530"
TEAL, YELLOW = "#12b5b0", "#ffd23f"
HOLE = "#9aa6b2"


def figure(found: Survey, *, title: str = "") -> "Figure":
    """The whole picture: the surface on the left, paths and histograms on the right; for images with their insets.

    A matplotlib figure of about 1,300 x 800 pixels at 110 dots an inch.
    """
    several = len(found.surfaces) > 1
    s, t = found.surfaces[0].s, found.surfaces[0].t
    shape = float((t[-1] - t[0]) / (s[-1] - s[0]))
    page = new_figure(12.0, 8.2 if several else min(max(6.0 * shape + 1.3, 5.2), 8.5), layout="constrained")
    if several:
        halves: Any = page.subfigures(2, 1, height_ratios=[1, 1.02], hspace=0.02)
        above, below = halves
        for ax, surface, sigma in zip(above.subplots(1, 3), found.surfaces, found.sigmas, strict=True):
            draw_contours(ax, surface, found, sigma=sigma)
        axes = below.subplots(1, 3)
    else:
        halves: Any = page.subfigures(1, 2, width_ratios=[1.55, 1])
        left, right = halves
        ax = left.subplots()
        draw_contours(ax, found.surfaces[0], found, sigma=found.sigmas[0])
        if found.in_plane:
            left.legend(
                *ax.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8.5, columnspacing=1.1,
                handlelength=1.4, facecolor="#5b5470", edgecolor="none", labelcolor=WHITE, framealpha=1,
            )  # fmt: skip
        axes = right.subplots(3, 1)
    draw_paths(axes[0], found)
    draw_chain_energies(axes[1], found)
    draw_histograms(axes[2], found.histograms)
    if title:
        page.suptitle(title, fontsize=13, color=INK, x=0.01, ha="left")
    return page


def colour_limits(surface: Surface, near: Tensor) -> tuple[float, float]:
    """(low, high), the energies at the ends of a surface's colours, nats; `near` are energies of data.

    `low` is that of the lowest cell, `high` as far above the data's 99 % quantile as that is above `low`: energies far
    from the data are orders of magnitude larger, and are cut. For planes through examples, which have data in a few
    points only, `high` is the plane's 60 % quantile where that is higher.
    """
    u = surface.u[surface.u.isfinite()]
    near = near[near.isfinite()]
    low = float(u.min())
    high = float(near.quantile(0.99)) if len(near) else float(u.median())
    top = high + max(high - low, 1e-6)
    if len(surface.corners):
        top = max(top, float(u.quantile(0.6)))
    return low, min(top, float(u.max())) if float(u.max()) > low else low + 1.0


def draw_contours(ax: Any, surface: Surface, found: Survey, *, sigma: float | None = None) -> None:
    """Filled contours of a surface, cut where `colour_limits` says, with what lies on it."""
    s, t = surface.s.numpy(), surface.t.numpy()
    at_examples = corner_energies(surface) if len(surface.corners) else found.histograms["unseen data"]
    from matplotlib.ticker import MaxNLocator

    low, top = colour_limits(surface, at_examples)
    u = np.ma.masked_invalid(surface.u.double().numpy())
    ax.set_facecolor(HOLE)
    steps = MaxNLocator(24).tick_values(low, top)
    filled = ax.contourf(s, t, u, levels=steps, cmap=COLOURS, extend="max")
    ax.contour(s, t, u, levels=steps[::3], colors="white", linewidths=0.4, alpha=0.35)
    bar = ax.figure.colorbar(
        filled,
        ax=ax,
        shrink=0.9 if found.in_plane or len(found.surfaces) == 1 else 0.62,
        pad=0.02,
        aspect=30,
        ticks=steps[:: max(1, round(len(steps) / 6))],
    )
    bar.set_label(("−log p" if found.normalised else "energy, constant unknown") + " (nats)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    ax.set_aspect("equal")
    ax.tick_params(labelsize=8)
    if sigma == found.sigmas[0]:
        _draw_boundaries(ax, surface, found.basins)
    if found.in_plane:
        _draw_points(ax, found)
    else:
        _draw_examples(ax, surface, found)
    ax.set_xlim(s[0], s[-1])
    ax.set_ylim(t[0], t[-1])
    if surface.num_holes:
        ax.text(0.02, 0.02, f"grey: no finite energy ({surface.num_holes} cells)", transform=ax.transAxes, fontsize=8)
    name = "the data's plane" if found.in_plane else "the plane through three examples"
    ax.set_title(name if sigma is None or found.in_plane else f"noise σ = {sigma:.2g}", fontsize=10, color=INK)


def _draw_boundaries(ax: Any, surface: Surface, found: Basins) -> None:
    """Boundaries between basins, without the grid's stairs."""
    from scipy.ndimage import gaussian_filter

    label = found.label.numpy()
    for k in range(len(found.minima) if len(found.minima) > 1 else 0):
        inside = gaussian_filter((label == k).astype(float), 1.0)
        for colour, width in ((INK, 2.0), (WHITE, 1.0)):
            ax.contour(surface.s, surface.t, inside, levels=[0.5], colors=colour, linewidths=width, alpha=0.8)


def _draw_points(ax: Any, found: Survey) -> None:
    """Data, chains, minima and the lines of lowest points between them."""
    ax.scatter(*found.data.T.numpy(), s=5, color=WHITE, alpha=0.6, linewidths=0, label="unseen data")
    chains = found.trace.x[:, :12] if found.trace.noisy else found.trace.x[found.trace.level <= WALK, :6]
    for k in range(chains.shape[1]):
        ax.plot(*chains[:, k].numpy().T, color=TEAL, linewidth=0.9, alpha=0.8, label="chains" if k == 0 else None)
    ax.scatter(
        *found.trace.x[-1].T.numpy(), s=18, color=TEAL, edgecolors=INK, linewidths=0.5, zorder=4, label="their ends"
    )
    for i, saddle in enumerate(found.basins.passes):
        ax.plot(*saddle.path.T.numpy(), color=YELLOW, linewidth=1.5, label="thalweg" if i == 0 else None)
    stars = {"marker": "*", "s": 120, "color": YELLOW, "edgecolors": INK, "linewidths": 0.6, "zorder": 5}
    ax.scatter(*found.basins.minima.T.numpy(), label="minima", **stars)
    if len(found.basins.minima) > 1:
        ax.plot([], [], color=WHITE, linewidth=1.2, label="between basins")
    ax.set_xlabel("first column", fontsize=9)
    ax.set_ylabel("second column", fontsize=9)


def corner_energies(surface: Surface) -> Tensor:
    """The energies (3,) of the examples that a plane goes through."""
    s, t = ((surface.corners[:, k : k + 1] - axis).abs().argmin(1) for k, axis in enumerate((surface.s, surface.t)))
    return surface.u[t, s]


def _draw_examples(ax: Any, surface: Surface, found: Survey) -> None:
    """The three examples at their places: images as insets, rows as letters."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    for corner, x, letter in zip(surface.corners.tolist(), found.examples, "abc", strict=True):
        ax.scatter(*corner, s=26, color=ORANGE, edgecolors=INK, linewidths=0.6, zorder=5)
        if found.kind == "image":
            zoom = 30 / max(x.shape[1:])
            box = OffsetImage(pixels(x), zoom=zoom, cmap="gray", resample=False)
            away = (0, -28 if corner[1] < 0.5 * float(surface.t[-1]) else 28)
            framed = AnnotationBbox(box, corner, xybox=away, boxcoords="offset points", pad=0.15, zorder=4)
            framed.patch.set_edgecolor(ORANGE)
            ax.add_artist(framed)
        else:
            ax.annotate(letter, corner, (5, 5), textcoords="offset points", color=WHITE, fontsize=11)
    ax.set_xlabel("distance in the data's units", fontsize=9)


def pixels(x: Tensor) -> np.ndarray:
    """An image (C, H, W) as matplotlib takes it."""
    x = x.clamp(0, 1)
    return x[0].numpy() if x.shape[0] == 1 else x.permute(1, 2, 0).numpy()


def draw_paths(ax: Any, found: Survey) -> None:
    """Energies along the straight path and the detour, with images from them."""
    over = found.in_plane and bool(found.basins.passes)
    name = "over the pass" if over else "through the noise"
    ax.plot(found.straight.w, found.straight.u, color=GREY, label=f"straight ({found.straight.barrier:,.4g} nats up)")
    if found.detour is not None:
        ax.plot(found.detour.w, found.detour.u, color=ORANGE, label=f"{name} ({found.detour.barrier:,.4g} up)")
    if found.kind == "image":
        _strip(ax, found.straight.x, 1.02)
        if found.detour is not None:
            _strip(ax, found.detour.x, 1.16)
    ax.set_xlabel("share of the path between two " + ("minima" if over else "examples"), fontsize=9)
    _set_up_axes(ax, found)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.3 * (high - low))  # room for the legend, above the curves
    ax.legend(frameon=False, fontsize=8, loc="upper center")


def _strip(ax: Any, x: Tensor, bottom: float, num: int = 9) -> None:
    """Images along a path, above the axes."""
    some = x[torch.linspace(0, len(x) - 1, num).round().long()]
    gap = 1.0
    row = np.concatenate(
        [np.pad(pixels(v), [(1, 1), (1, 1)] + [(0, 0)] * (v.shape[0] == 3), constant_values=gap) for v in some], 1
    )
    inset = ax.inset_axes((0, bottom, 1, 0.13))
    inset.imshow(row, cmap="gray", vmin=0, vmax=1, aspect="auto")
    inset.set_axis_off()


def draw_chain_energies(ax: Any, found: Survey) -> None:
    """Energies of the chains, and of data with as much noise.

    Of images the difference to the data's median is drawn, since noise alone moves the energy by thousands of nats.
    """
    trace, beside = found.trace, found.trace_data
    level, u = trace.level.numpy() + (0 if trace.noisy else 1), trace.u.numpy()
    _set_up_axes(ax, found)
    if beside is not None:
        centre = np.zeros(1)
        if found.kind == "image":
            centre = np.nanmedian(beside.numpy(), axis=1)
            ax.set_ylabel("above data with that noise (nats)", fontsize=9)
            _strip(ax, trace.x[:, 0], 1.02)
        low, high = (np.nanquantile(beside.numpy(), q, axis=1) - centre for q in (0.05, 0.95))
        u = u - centre[:, None]
        ax.fill_between(level, low, high, color=BLUE, alpha=0.3, linewidth=0, label="90 % of data with that noise")
        ax.set_xlabel("noise σ, falling to the right", fontsize=9)
        ax.invert_xaxis()
    else:
        ax.set_xlabel("step of the chain", fontsize=9)
        data = found.histograms["unseen data"]
        low, high = float(np.nanmin(u)), float(data[data.isfinite()].max())
        ax.set_ylim(low - 0.1 * (high - low), high + 2 * (high - low))
    ax.plot(level, u, color=ORANGE, linewidth=0.6, alpha=0.55)
    ax.plot([], [], color=ORANGE, label="the sampler's chains" if trace.noisy else "chains from noise")
    ax.set_xscale("log")
    ax.legend(frameon=False, fontsize=8)


def draw_histograms(ax: Any, sets: dict[str, Tensor]) -> None:
    """Energies of unseen data, samples and corruptions: one row each, on one axis, bending into a logarithm far out."""
    first = sets["unseen data"][sets["unseen data"].isfinite()]
    centre, width = first.median(), max(float(first.quantile(0.95) - first.quantile(0.05)), 1e-6)
    names = [name for name, u in sets.items() if bool(u.isfinite().any())]
    for i, name in enumerate(reversed(names)):
        u = sets[name][sets[name].isfinite()]
        scaled = torch.asinh((u - centre) / width).numpy()
        colour = BLUE if name == "unseen data" else ORANGE if name == "samples" else GREY
        counts, edges = np.histogram(scaled, bins=max(8, round(2.4 * len(scaled) ** 0.5)))
        if edges[-1] - edges[0] < 0.3:
            counts, edges = np.histogram(scaled, bins=8, range=(scaled.mean() - 0.15, scaled.mean() + 0.15))
        ax.stairs(i + 0.85 * counts / counts.max(), edges, baseline=i, fill=True, color=colour)
    ax.set_yticks([i + 0.3 for i in range(len(names))], list(reversed(names)), fontsize=8)
    ax.tick_params(length=0, axis="y")
    ends = ax.get_xlim()
    marks: list[float] = []
    for mark in sorted(_marks(width), key=lambda m: (m != 0, -abs(m))):  # zero first, then the far ones
        place = np.arcsinh(mark / width)
        if ends[0] <= place <= ends[1] and all(
            abs(place - np.arcsinh(other / width)) > 0.13 * (ends[1] - ends[0]) for other in marks
        ):
            marks.append(mark)
    ax.set_xticks([np.arcsinh(m / width) for m in marks], [f"{m:,.6g}" for m in marks], fontsize=8)
    ax.axvline(0, color=BLUE, linewidth=0.8, linestyle=":")
    ax.set_xlabel("energy above the median of unseen data (nats)", fontsize=9)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _marks(width: float) -> list[float]:
    """Ticks 0, ± powers of ten from about the data's width up, every other one from there."""
    first = 10.0 ** np.floor(np.log10(width))
    powers = [first * 10.0**k for k in range(0, 8)]
    return [*(-p for p in reversed(powers)), 0.0, *powers]


def _set_up_axes(ax: Any, found: Survey) -> None:
    ax.set_ylabel("−log p (nats)" if found.normalised else "energy (nats)", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
