"""Basins of a surface: lines of steepest descent, the minima that they end in, and the passes between basins.

A *basin* is the set of points whose line of steepest descent dx/dl = -grad E / |grad E| ends in the same minimum.
Learned energies are rough, so a minimum counts only if one must climb at least `min_depth` nats to get to a lower one:
its *persistence* (Edelsbrunner, Letscher and Zomorodian 2002). A flooding of the grid in the order of energy gives the
persistence of every minimum, and the pass over which it is left.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.apps.landscape.surface import Energy, Surface
from thalweg.core import check
from thalweg.energy.base import energy_and_grad
from thalweg.energy.engine.freeze import frozen

ARMIJO = 0.1
Saddle = tuple[int, int, tuple[int, int], float]  # two basins, two cells at the saddle, its energy


class Descent(NamedTuple):
    """x (S + 1, B, *), from the start to the last step, and u (S + 1, B) nats, which never rises along a row."""

    x: Float[Tensor, "s b *d"]
    u: Float[Tensor, "s b"]


def descent(energy: Energy, x: Float[Tensor, "b *d"], *, max_move: float, num_steps: int = 300) -> Descent:
    """Lines of steepest descent from x, at most `num_steps` moves of length at most `max_move`, in units of x.

    x' = x - l grad E / |grad E|; a row's l is halved where E would not fall by 0.1 l |grad E| (Armijo 1966), else grown
    by half. It ends early where no row moves a thousandth of max_move. One gradient a step; no randomness. Modules are
    in evaluation mode.
    """
    check.positive(max_move=max_move)
    check.count(num_steps=num_steps)
    with frozen(energy):
        return _descent(energy, x.detach().clone(), max_move, num_steps)


def _descent(energy: Energy, x: Float[Tensor, "b *d"], max_move: float, num_steps: int) -> Descent:
    u, g = energy_and_grad(energy, x)
    length = torch.full_like(u, max_move)
    xs, us = [x], [u]
    wide = (-1, *[1] * (x.ndim - 1))
    for _ in range(num_steps):
        norm = g.flatten(1).norm(dim=1)
        there = x - (length / norm.clamp(min=1e-30)).view(wide) * g
        u_there, g_there = energy_and_grad(energy, there)
        falls = (u - u_there) >= ARMIJO * length * norm
        falls &= norm > 0
        x = torch.where(falls.view(wide), there, x)
        u, g = torch.where(falls, u_there, u), torch.where(falls.view(wide), g_there, g)
        length = torch.where(falls, (1.5 * length).clamp(max=max_move), 0.5 * length)
        xs.append(x)
        us.append(u)
        if bool((length < 1e-3 * max_move).all()):
            break
    return Descent(torch.stack(xs), torch.stack(us))


class Basins(NamedTuple):
    """The basins of a surface, the deepest first.

    Args:
        label: The basin of each cell, from 0 on; -1 in holes, where the energy is not finite.
        minima: Coordinates of their minima.
        u: Energies there, nats.
        passes: The lowest passes between basins, a spanning tree of them.
    """

    label: Int[Tensor, "m n"]
    minima: Float[Tensor, "k 2"]
    u: Float[Tensor, " k"]
    passes: list["Pass"]


class Pass(NamedTuple):
    """A saddle between two basins.

    Args:
        basins: Their numbers.
        u: The energy at the saddle, nats.
        place: Its coordinates.
        path: The line of lowest points from one minimum over the saddle to the other, the thalweg.
    """

    basins: tuple[int, int]
    u: float
    place: Float[Tensor, " 2"]
    path: Float[Tensor, "l 2"]


class Spline:
    """The bicubic spline through a surface's energies, as an energy of the coordinates (B, 2) with its own gradient.

    A descent of thousands of cells then costs no network. Holes have the highest energy there is, so that no descent
    ends in them. Outside of the grid the energy is as on the edge.
    """

    def __init__(self, surface: Surface):
        from scipy.interpolate import RectBivariateSpline

        u = surface.u.double()
        u = torch.where(u.isnan(), u[~u.isnan()].max(), u)
        self.low, self.high = (torch.stack([axis[i] for axis in (surface.s, surface.t)]).double() for i in (0, -1))
        self._spline = RectBivariateSpline(surface.t.double().numpy(), surface.s.double().numpy(), u.numpy())

    def __call__(self, x: Float[Tensor, "b 2"]) -> Float[Tensor, " b"]:
        """The energy, not differentiable by autograd."""
        return self.value_and_grad(x)[0]

    def value_and_grad(self, x: Float[Tensor, "b 2"]) -> tuple[Tensor, Tensor]:
        """(u, du/d(s, t))."""
        inside = x.double().clamp(self.low, self.high)
        s, t = inside.numpy().T
        parts = [self._spline.ev(t, s, dx=dx, dy=dy) for dx, dy in ((0, 0), (0, 1), (1, 0))]
        u, gs, gt = (torch.from_numpy(np.asarray(v)).to(x.dtype) for v in parts)
        return u, torch.where(inside == x.double(), torch.stack([gs, gt], dim=1), 0.0)


def basins(surface: Surface, *, min_depth: float = 1.0) -> Basins:
    """Which minimum each cell of a surface flows to, minima less than `min_depth` nats deep given to their neighbours.

    O(cells log cells), and a descent on the grid's spline. Two minima nearer than a cell are not told apart.
    """
    check.non_negative(min_depth=min_depth)
    flooded, roots, saddles = _flood(surface.u.double().numpy(), min_depth)
    spline, step = Spline(surface), 0.5 * max(float(axis.diff().max()) for axis in (surface.s, surface.t))
    cells = torch.stack(torch.meshgrid(surface.s, surface.t, indexing="xy"), dim=-1).reshape(-1, 2).double()
    flooded, roots, saddles = _distinct(surface, spline, cells, step, flooded, roots, saddles)
    lowest_pass = np.full(len(roots), np.inf)
    for one, other, _, height in saddles:
        lowest_pass[[one, other]] = np.minimum(lowest_pass[[one, other]], height)
    label = _descend(surface, spline, cells, step, flooded, lowest_pass)
    found = descent(spline, cells[roots], max_move=step, num_steps=200)
    valleys = _valley(surface, cells, [(roots[one], roots[other]) for one, other, *_ in saddles]) if saddles else []
    passes = [
        Pass((one, other), height, cells[list(sides)].mean(0).float(), path)
        for (one, other, sides, height), path in zip(saddles, valleys, strict=True)
    ]
    return Basins(torch.from_numpy(label), found.x[-1].float(), found.u[-1].float(), passes)


def _distinct(
    surface: Surface,
    spline: "Spline",
    cells: Tensor,
    step: float,
    flooded: np.ndarray,
    roots: list[int],
    saddles: list[Saddle],
) -> tuple[np.ndarray, list[int], list[Saddle]]:
    """The same without minima of the grid that are none of the spline: a valley askew to the grid has such."""
    ends = descent(spline, cells[roots], max_move=step, num_steps=100).x[-1]
    into = flooded[_nearest(surface.t, ends[:, 1]), _nearest(surface.s, ends[:, 0])]
    into = np.where((into >= 0) & (into < np.arange(len(roots))), into, np.arange(len(roots)))  # the deeper one stays
    for k in range(len(roots)):
        into[k] = into[into[k]]
    kept = np.unique(into)
    number = np.searchsorted(kept, into)
    merged = [(int(number[a]), int(number[b]), sides, u) for a, b, sides, u in saddles if number[a] != number[b]]
    tree, last = [], list(range(len(kept)))  # a merged pair may leave a loop, whose highest pass is none
    for a, b, sides, u in merged:
        one, other = last[a], last[b]
        if one != other:
            tree.append((a, b, sides, u))
            last = [one if v == other else v for v in last]
    return np.where(flooded >= 0, number[flooded], -1), [roots[k] for k in kept], tree


def _descend(
    surface: Surface, spline: Spline, x: Tensor, step: float, flooded: np.ndarray, lowest_pass: np.ndarray
) -> np.ndarray:
    """The basin of every cell, (m, n).

    Below the lowest pass of its basin the flood is right, as no descent leaves there. From the cells above it, lines of
    steepest descent are followed until they come below a pass.
    """
    label = flooded.reshape(-1).copy()
    active = np.flatnonzero((surface.u.reshape(-1).numpy() >= lowest_pass[label]) & (label >= 0))
    x = x[active]
    for _ in range(40):
        if not len(active):
            break
        line = descent(spline, x, max_move=step, num_steps=12)
        x, u = line.x[-1], line.u[-1].numpy()
        here = flooded[_nearest(surface.t, x[:, 1]), _nearest(surface.s, x[:, 0])]
        label[active] = np.where(here >= 0, here, label[active])
        above = u >= lowest_pass[label[active]]
        active, x = active[above], x[torch.from_numpy(above)]
    return label.reshape(flooded.shape)


def _valley(surface: Surface, cells: Tensor, ends: list[tuple[int, int]]) -> list[Float[Tensor, "l 2"]]:
    """The line of lowest points, the thalweg, between two cells each: no way between them has a lower highest point.

    It is their path in the minimum spanning tree of neighbouring cells, an edge's weight the higher of its two energies
    (Hu 1961); a mean over five cells takes out the grid's stairs.
    """
    from scipy.ndimage import uniform_filter1d
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    u = surface.u.double().numpy()
    u = np.where(np.isnan(u), np.nanmax(u), u) - np.nanmin(u) + 1.0  # an edge of weight 0 would be none
    number = np.arange(u.size).reshape(u.shape)
    pairs = [
        (number[:-1], number[1:]),
        (number[:, :-1], number[:, 1:]),
        (number[:-1, :-1], number[1:, 1:]),
        (number[:-1, 1:], number[1:, :-1]),
    ]
    one, other = (np.concatenate([pair[k].reshape(-1) for pair in pairs]) for k in (0, 1))
    ends_u = np.stack([u.reshape(-1)[one], u.reshape(-1)[other]])
    weight = ends_u.max(0) + 1e-6 * ends_u.min(0)  # of a cell's ways down the steepest
    tree = minimum_spanning_tree(coo_array((weight, (one, other)), shape=(u.size, u.size)).tocsr())
    found = []
    for start, end in ends:
        before = breadth_first_order(tree, start, directed=False)[1]
        line = [end]
        while line[-1] != start:
            line.append(int(before[line[-1]]))
        path = cells[line[::-1]].numpy()
        smooth = uniform_filter1d(path, 5, axis=0, mode="nearest")
        smooth[[0, -1]] = path[[0, -1]]
        found.append(torch.from_numpy(smooth).float())
    return found


def _nearest(axis: Tensor, value: Tensor) -> np.ndarray:
    middle = ((axis[1:] + axis[:-1]) / 2).double().contiguous()
    return torch.searchsorted(middle, value.contiguous()).numpy()


class _Sets:
    """Disjoint sets of cells, each called by its member of lowest energy."""

    def __init__(self, u: np.ndarray):
        self.u, self.parent = u, {}

    def add(self, cell: int) -> None:
        self.parent[cell] = cell

    def find(self, cell: int) -> int:
        while self.parent[cell] != cell:
            self.parent[cell] = self.parent[self.parent[cell]]
            cell = self.parent[cell]
        return cell

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)), key=lambda cell: self.u[cell])
        self.parent[high] = low


def _flood(grid: np.ndarray, min_depth: float) -> tuple[np.ndarray, list[int], list[Saddle]]:
    """(basin of each cell, the lowest cell of each basin, the saddles).

    Cells are taken in the order of energy. One without a neighbour before it begins a pool; one where two lakes of
    pools meet is a pass: the lake with the higher minimum ends there if it is less than min_depth deep, and is a single
    pool.
    """
    (m, n), u = grid.shape, grid.reshape(-1)
    pools, lakes, pool, saddles = _Sets(u), _Sets(u), {}, []
    for cell in np.argsort(u, kind="stable").tolist():
        if not np.isfinite(u[cell]):
            continue
        i, j = divmod(cell, n)
        beside = [p * n + q for p in range(max(i - 1, 0), min(i + 2, m)) for q in range(max(j - 1, 0), min(j + 2, n))]
        wet = [k for k in beside if k in pool]
        if not wet:
            pool[cell] = cell
            pools.add(cell)
            lakes.add(cell)
            continue
        lowest = min(wet, key=lambda k: u[k])
        pool[cell] = pool[lowest]
        for k in wet:
            one, other = pools.find(pool[cell]), pools.find(pool[k])
            shores = lakes.find(one), lakes.find(other)
            if shores[0] == shores[1]:
                continue
            if u[cell] - u[list(shores)].max() < min_depth:
                pools.join(one, other)
            else:
                saddles.append((one, other, (lowest, k), float(u[cell])))
            lakes.join(*shores)
    roots = sorted({pools.find(p) for p in set(pool.values())}, key=lambda p: u[p])
    number = {root: i for i, root in enumerate(roots)}
    label = np.full(m * n, -1)
    for cell, p in pool.items():
        label[cell] = number[pools.find(p)]
    saddles = [(number[pools.find(a)], number[pools.find(b)], sides, height) for a, b, sides, height in saddles]
    return label.reshape(m, n), roots, saddles
