"""All that a picture of a bundle's landscape shows, computed once: surfaces, basins, paths, chains, histograms."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.landscape.basins import Basins, basins
from thalweg.apps.landscape.data_energy import DataEnergy, Model, at_level, noise_levels
from thalweg.apps.landscape.paths import Path, Trace, denoising, ends, interpolation, noised, through_noise
from thalweg.apps.landscape.surface import Surface, energies, plane, window
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.inputs import require_numbers
from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator
from thalweg.energy.engine.freeze import frozen
from thalweg.evaluate.corruptions import corrupted

NUM_ROWS = 300
NUM_IMAGES = 60  # an energy of an image costs a thousand times one of a point


class Survey(NamedTuple):
    """The landscape of one bundle, on the CPU, where pictures are drawn.

    Args:
        kind: "image" or "vector".
        normalised: Whether -E is log p.
        sigmas: Noise deviations of the surfaces, in model units, the lowest first; [None] without noise levels.
        surfaces: One at each of these.
        basins: Of the first surface.
        examples: The three rows that span the plane, in data units.
        data: Unseen rows, in data units.
        straight: The straight path between two examples or minima.
        detour: The path through the noise, or over the pass between the two deepest basins, where there is one.
        trace: The sampler's chains.
        trace_data: Energies of `data` with the noise of each state of the trace, nats.
        histograms: Energies of unseen data, samples and corruptions, by name, nats.
    """

    kind: str
    normalised: bool
    sigmas: list[float | None]
    surfaces: list[Surface]
    basins: Basins
    examples: Float[Tensor, "k *d"]
    data: Float[Tensor, "n *d"]
    straight: Path
    detour: Path | None
    trace: Trace
    trace_data: Float[Tensor, "s n"] | None
    histograms: dict[str, Tensor]

    @property
    def in_plane(self) -> bool:
        """Whether the surface is all of the data's space."""
        return not len(self.surfaces[0].corners)


def survey(
    bundle: Bundle,
    held_out: Float[Tensor, "n *d"],
    *,
    labels: Tensor | None = None,
    examples: Float[Tensor, "3 *d"] | None = None,
    size: int | None = None,
    num_samples: int | None = None,
    brief: bool = False,
    min_depth: float = 1.0,
    seed: int = 0,
) -> Survey:
    """The energy of a bundle, on its device, around data that it has not seen. UserError for what cannot be drawn.

    Args:
        bundle: A trained energy.
        held_out: Unseen rows, in data units.
        labels: Their classes, (n,).
        examples: Span the plane, for all but 2-D data, which are drawn over their own. None: chosen from `held_out`, of
            different classes where there are labels.
        size: Grid lines along the longer side of a surface.
        num_samples: How many samples the histograms have.
        brief: Costs a third for images: a coarser grid, fewer chains and fewer samples.
        min_depth: Basins less deep, in nats, join a neighbour.
        seed: Of all randomness.
    """
    if not isinstance(bundle, Bundle):
        text = f"must be a Bundle, not {kind_of(bundle)}"
        raise UserError(text, argument="bundle", hint="give thalweg.load of a run of `thalweg train`")
    require_numbers(bundle, "a landscape")
    if math.prod(bundle.shape) < 2:
        text = "must be a model of data of two columns or more, as one column has no plane"
        raise UserError(text, argument=str(bundle.path))
    held_out, labels = held_out.cpu(), None if labels is None else labels.cpu()
    three = choose(held_out, labels, seed) if examples is None else _require_three(examples.cpu())[:3]
    flat = bundle.shape == (2,)
    count = NUM_IMAGES if bundle.kind == "image" else NUM_ROWS
    rows = held_out[torch.randperm(len(held_out), generator=generator(seed, "landscape-rows"))[:count]]
    with frozen(bundle.model) as model:
        lowest = at_level(bundle, model)
        sigmas = _sigmas(bundle, flat)
        surfaces = []
        for sigma in sigmas:
            energy = at_level(bundle, model, sigma)
            if flat:
                surfaces.append(window(energy, held_out, size=size or 121))
            else:
                surfaces.append(plane(energy, *three, size=size or (21 if brief else 33)))
        found = basins(surfaces[0], min_depth=min_depth)
        chains = 48 if flat else 8 if brief else 12
        trace = denoising(bundle, model, chains, seed=seed, keep=20 if bundle.kind == "image" else 40)
        straight, detour = _paths(bundle, model, lowest, three, found, flat)
        beside = noised(bundle, model, rows, trace.level.tolist(), seed=seed) if bundle.noisy else None
        if brief and bundle.noisy:
            samples = ends(bundle, model, trace)
        else:
            samples = bundle.sample(num_samples or (16 if brief else count), seed=seed).cpu()
        sets = {"unseen data": rows, "samples": samples, **corrupted(rows, seed=seed)}
        histograms = {name: energies(lowest, x) for name, x in sets.items()}
    return Survey(
        bundle.kind,
        bundle.normalised,
        sigmas,
        surfaces,
        found,
        three,
        rows,
        straight,
        detour,
        trace,
        beside,
        histograms,
    )


def choose(rows: Float[Tensor, "n *d"], labels: Tensor | None, seed: int) -> Float[Tensor, "3 *d"]:
    """Three rows drawn at the address (seed, "landscape"), of three classes where there are as many.

    UserError where there are fewer than three rows.
    """
    order = torch.randperm(len(_require_three(rows)), generator=generator(seed, "landscape")).tolist()
    if labels is None or len(labels.unique()) < 3:
        return rows[order[:3]]
    chosen: list[int] = []
    for row in order:
        if int(labels[row]) not in [int(labels[other]) for other in chosen]:
            chosen.append(row)
    return rows[chosen[:3]]


def _require_three(rows: Tensor) -> Tensor:
    if len(rows) < 3:
        raise UserError(f"must be 3 rows or more, to span a plane, and are {len(rows)}", argument="examples")
    return rows


def _sigmas(bundle: Bundle, flat: bool) -> list[float | None]:
    """Noise deviations of the surfaces, model units, the lowest first."""
    if not bundle.noisy:
        return [None]
    low = math.sqrt(bundle.t_min)
    if flat:
        return [low]
    return [low, *(s for s in noise_levels(bundle, 3, top=10 * low)[1::-1] if s > low)]


def _paths(
    bundle: Bundle, model: Model, lowest: DataEnergy, three: Tensor, found: Basins, flat: bool
) -> tuple[Path, Path | None]:
    """The straight path and the detour: in the plane between the deepest basins, else between two examples."""
    if flat and found.passes:
        best = min(found.passes, key=lambda p: p.u)
        path = _even(best.path, 101)
        straight = interpolation(lowest, path[0], path[-1], num=101)
        return straight, Path(torch.linspace(0, 1, 101), path, energies(lowest, path))
    straight = interpolation(lowest, three[0], three[1])
    return straight, through_noise(bundle, model, three[0], three[1]) if bundle.noisy else None


def _even(path: Float[Tensor, "l 2"], num: int) -> Float[Tensor, "num 2"]:
    """The same line by `num` points at even distances along it."""
    import numpy as np

    gone = torch.cat([path.new_zeros(1), path.diff(dim=0).norm(dim=1).cumsum(0)]).double().numpy()
    places = np.linspace(0, gone[-1], num)
    columns = [np.interp(places, gone, path[:, k].double().numpy()) for k in range(2)]
    return torch.from_numpy(np.stack(columns, axis=1)).float()
