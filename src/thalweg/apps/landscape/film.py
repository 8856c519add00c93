"""The frames of an animation, which the GIF and the HTML page show: surfaces, and points that move on them."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.landscape.basins import Spline, descent
from thalweg.apps.landscape.data_energy import at_level
from thalweg.apps.landscape.figures import colour_limits, corner_energies
from thalweg.apps.landscape.paths import WALK
from thalweg.apps.landscape.surface import Surface, window
from thalweg.apps.landscape.survey import Survey
from thalweg.bundle.bundle import Bundle
from thalweg.core.rng import generator
from thalweg.energy.engine.freeze import frozen

IN_VIEW = 1.5  # noise deviation, model units, below which chains are in the picture
NUM_DESCENTS = 48


class Film(NamedTuple):
    """The frames of an animation.

    Args:
        surfaces: In the order in which they are shown.
        limits: Of each surface the energies at the ends of its colours, nats.
        sigmas: Of each surface the noise deviation, in model units. None: the energy has no noise levels.
        shown: The number of the surface in each frame, (f,).
        points: Coordinates in each frame, NaN for points that are not there yet.
        what: What the points are, for the reader.
    """

    surfaces: list[Surface]
    limits: list[tuple[float, float]]
    sigmas: list[float | None]
    shown: list[int]
    points: Float[Tensor, "f n 2"]
    what: str

    def heights(self, k: int, size: int) -> Float[Tensor, "m n"]:
        """Surface k on an even grid, as shares of the way between its colours' ends: in [0, 1], NaN in holes."""
        surface, (low, top) = self.surfaces[k], self.limits[k]
        wide, deep = float(surface.s[-1] - surface.s[0]), float(surface.t[-1] - surface.t[0])
        count = [max(8, round(size * side / max(wide, deep))) for side in (wide, deep)]
        s, t = (
            torch.linspace(float(v[0]), float(v[-1]), n) for v, n in zip((surface.s, surface.t), count, strict=True)
        )
        grid = torch.stack(torch.meshgrid(s, t, indexing="xy"), dim=-1).reshape(-1, 2)
        u = ((Spline(surface)(grid) - low) / (top - low)).clamp(0, 1)
        near = [(v[:, None] - axis).abs().argmin(1) for v, axis in ((t, surface.t), (s, surface.s))]
        holes = surface.u.isnan()[near[0]][:, near[1]]
        return torch.where(holes, torch.nan, u.float().reshape(len(t), len(s)))


def film(bundle: Bundle, found: Survey, *, seed: int = 0, size: int = 72) -> Film:
    """2-D data: the sampler's chains, over the surface of each noise level that they pass.

    Planes through examples: first the surfaces, from the highest noise level to the lowest, then points that descend
    on the lowest.
    """
    if not found.in_plane:
        return _descents(found, seed)
    trace = found.trace
    if not trace.noisy:
        kept = trace.level <= WALK
        limits = colour_limits(found.surfaces[0], found.histograms["unseen data"])
        points = trace.x[kept]
        return Film([found.surfaces[0]], [limits], [None], [0] * len(points), points, "Langevin chains from noise")
    frames = [k for k, sigma in enumerate(trace.level.tolist()) if sigma <= IN_VIEW]
    assert found.trace_data is not None
    surfaces, limits = [], []
    with frozen(bundle.model) as model:
        for k in frames:
            surfaces.append(window(at_level(bundle, model, float(trace.level[k])), found.data, size=size))
            limits.append(colour_limits(surfaces[-1], found.trace_data[k]))
    sigmas: list[float | None] = [float(trace.level[k]) for k in frames]
    return Film(surfaces, limits, sigmas, list(range(len(frames))), trace.x[frames], "chains, as the noise falls")


def _descents(found: Survey, seed: int) -> Film:
    """First each surface for some frames, then lines of steepest descent on the lowest."""
    surfaces, sigmas = found.surfaces[::-1], found.sigmas[::-1]
    lowest = surfaces[-1]
    box = torch.tensor([[float(axis[i]) for axis in (lowest.s, lowest.t)] for i in (0, -1)])
    start = box[0] + (box[1] - box[0]) * torch.rand(NUM_DESCENTS, 2, generator=generator(seed, "landscape-balls"))
    move = float(box[1].sub(box[0]).max()) / 60
    lines = descent(Spline(lowest), start.double(), max_move=move, num_steps=45).x.float()
    hidden = lines.new_full((6 * (len(surfaces) - 1), NUM_DESCENTS, 2), np.nan)
    shown = [k for k in range(len(surfaces) - 1) for _ in range(6)] + [len(surfaces) - 1] * len(lines)
    limits = [colour_limits(surface, corner_energies(surface)) for surface in surfaces]
    return Film(surfaces, limits, sigmas, shown, torch.cat([hidden, lines]), "points that descend in the plane")
