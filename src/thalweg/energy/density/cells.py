"""The cells of a kernel density's inverted file: their centres, and the one that a row lies in."""

import math

import numpy as np
import torch
from torch import Tensor

from thalweg.energy.density.kde import squared_distances
from thalweg.energy.density.kernel_sums import BITS, ROWS, TOGETHER, Queries, lift, lift_list

ROUNDS = 10  # of k-means
CELLS = 2.0  # cells over sqrt(N), at most
CUBED = 8.5  # cells over the cube root of N, at most: with more, each has few rows of a batch, whose product is slow
FAR = 16 * BITS  # of squared distance to the middle of the centres


class Cells:
    """The cell of each row, that of the nearest centre; in float32 where that finds it to 0.1 bits."""

    def __init__(self, centers: Tensor):
        self.centers, self.middle = centers, centers.mean(0)
        y = centers - self.middle
        square = y.square().sum(1)
        self.narrow = float(square.max()) < FAR
        self.lifted = torch.cat([2 * y, -square[:, None]], dim=1).T.float().contiguous()

    def __call__(self, x: Tensor, unit: float) -> tuple[Tensor, Queries]:
        """(indices (B,), queries relative to these centres); a row's do not depend on the rows beside it."""
        cell = torch.empty(len(x), dtype=torch.int64, device=x.device)
        lifted = torch.empty(len(x), x.shape[1] + 2, device=x.device)
        for at in range(0, len(x), ROWS):
            block = x.detach()[at : at + ROWS].double() * unit
            cell[at : at + ROWS] = found = self._of(block)
            lift(block - self.centers[found], lifted[at : at + ROWS])
        return cell, Queries(x, unit, lifted)

    def _of(self, x: Tensor) -> Tensor:
        z = x - self.middle
        lifted = z.new_ones(max(len(z), TOGETHER), z.shape[1] + 1, dtype=torch.float32)
        lifted[: len(z), :-1] = z
        cell = _argmax(lifted @ self.lifted)[: len(z)]
        wide = z.square().sum(1) > FAR if self.narrow else torch.ones_like(cell, dtype=torch.bool)
        if wide.any():
            cell[wide] = _exact_cells(x[wide], self.centers)
        return cell


class NearCells:
    """The cell of queries about a `middle`, by the products that their sums have; in float64 for those far from it."""

    def __init__(self, centers: Tensor, middle: Tensor):
        y = centers - middle
        self.centers, self.middle, self.lifted = centers, middle, lift_list(y, y.square().sum(1))

    def __call__(self, queries: Queries) -> tuple[Tensor, Tensor]:
        """(indices (B,), squared distances to these centres (B,) in float64)."""
        lifted, count = queries.lifted, len(self.centers)
        cell = torch.empty(len(lifted), dtype=torch.int64, device=lifted.device)
        squared = torch.empty(len(lifted), dtype=torch.float64, device=lifted.device)
        products = lifted.new_empty(ROWS, count)
        for at in range(0, len(lifted), ROWS):
            block = lifted[at : at + ROWS]
            rows = len(block)
            if rows < TOGETHER:
                block = torch.cat([block, block.new_zeros(TOGETHER - rows, block.shape[1])])
            found = torch.mm(block, self.lifted, out=products[: len(block)])[:rows]
            cell[at : at + rows] = nearest = _argmax(found)
            squared[at : at + rows] = -found.gather(1, nearest[:, None]).squeeze(1)
        far = (lifted[:, -2] < -BITS).nonzero().squeeze(1)
        if len(far):
            x = queries.x[far].detach().double() * queries.unit
            cell[far] = nearest = _exact_cells(x, self.centers)
            squared[far] = (x - self.centers[nearest]).square().sum(1)
        return cell, squared.clamp_min_(0)


def _exact_cells(x: Tensor, centers: Tensor) -> Tensor:
    return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def _argmax(values: Tensor) -> Tensor:
    """Of each row; on the CPU NumPy's, which takes a seventh of the time."""
    return torch.from_numpy(values.numpy().argmax(1)) if values.device.type == "cpu" else values.argmax(1)


def order_of(cells: Tensor) -> Tensor:
    """Rows by cell, in their order; by NumPy on the CPU, which counts numbers of 16 bits rather than compares them."""
    if cells.device.type != "cpu" or (len(cells) and int(cells.max()) > np.iinfo(np.uint16).max):
        return cells.argsort(stable=True)
    return torch.from_numpy(cells.numpy().astype(np.uint16).argsort(kind="stable"))


def without(rows: Tensor, some: Tensor) -> Tensor:
    """The rows but those at some places."""
    kept = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    kept[some] = False
    return rows[kept]


def centers_of(rows: Tensor) -> Tensor:
    """Centres of k-means (Lloyd 1982) on up to 60 to 120 rows each, from evenly spaced ones.

    2 sqrt(N) of them up to 5,893 rows, 8.5 times the cube root of N beyond.
    """
    k = round(min(CELLS * math.sqrt(len(rows)), CUBED * math.cbrt(len(rows))))
    some = rows[:: max(1, len(rows) // (60 * k))]
    centers = some[torch.linspace(0, len(some) - 1, k).long()].clone()
    for _ in range(ROUNDS):
        cell = torch.cat([squared_distances(block, centers).argmin(1) for block in some.split(1024)])
        sums = torch.zeros_like(centers).index_add_(0, cell, some)
        counts = torch.bincount(cell, minlength=k)
        there = counts > 0
        centers[there] = sums[there] / counts[there, None]
    return centers
