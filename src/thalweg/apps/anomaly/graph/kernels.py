"""The kernels and mixtures behind a detector of tables, as modules of tensor operations in float64.

A graph has no cells to skip, so each row meets all N stored rows, `BLOCK` at a time. Where the energy sums over the
candidates of a cell alone (`energy.density.kde_ivf`), a table of cells and stored rows says which terms count, so that
the sum is the same one.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.apps.anomaly.graph.lookup import hold
from thalweg.apps.anomaly.tabular.mixtures_and_histograms import Mixture
from thalweg.energy.density.kde_ivf import EXACT, IVFKernelDensityEnergy

BLOCK = 4096  # stored rows at a time: a row of a batch needs about 100 kB beside the graph


class KernelGraph(nn.Module):
    """E(y) of rows y (B, D) of one scaling, nats, and the mean squared distance to the k nearest stored rows (B,).

    Args:
        kernel: The fitted energy.
        k: Neighbours; 0: the distance is not taken, and None comes in its place.
    """

    unit: Tensor
    constant: Tensor
    exact_above: Tensor
    rows: Tensor
    middle: Tensor
    squares: Tensor
    centers: Tensor
    center_squares: Tensor
    limits: Tensor
    levels: Tensor

    def __init__(self, kernel: IVFKernelDensityEnergy, k: int = 0):
        super().__init__()
        n, d = kernel.rows.shape
        to_nats = math.sqrt(math.log(2))  # the kernel's own unit of length is that of bits
        middle = kernel.rows.mean(0)
        rows = (kernel.rows - middle) * to_nats
        self.k = min(k, n)
        constant = math.log(n) + 0.5 * d * math.log(2 * math.pi * kernel.t)
        hold(self, unit=kernel.unit * to_nats, constant=constant, exact_above=kernel.search.exact_above)
        hold(self, middle=(middle * to_nats).cpu(), rows=rows.cpu(), squares=rows.square().sum(1).cpu())
        self.searches = kernel.search.num_candidates > 0
        if self.searches:
            centers = ((kernel.centers - middle) * to_nats).cpu()
            hold(self, centers=centers, center_squares=centers.square().sum(1))
            hold(self, limits=(kernel.limits() * to_nats).cpu())
            self.register_buffer("levels", _levels(kernel))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """(E, distance), (B,) each."""
        x = y * self.unit - self.middle
        square = x.square().sum(1, keepdim=True)
        cell, squared = None, square
        if self.searches:
            squares = self.center_squares - 2 * (x @ self.centers.T)
            cell, squared = squares.argmin(1), square.squeeze(1) - squares.neg().amax(1)
        some, every = _Sums(self.k), _Sums(self.k)
        top: Tensor | None = None
        for at in range(0, len(self.rows), BLOCK):
            rows, squares = self.rows[at : at + BLOCK], self.squares[at : at + BLOCK]
            logs = 2 * (x @ rows.T) - squares  # of the terms, but for |x|²
            largest = logs.amax(1, keepdim=True)
            larger = largest if top is None else torch.maximum(top, largest)
            shrunk = None if top is None else torch.exp(top - larger)
            terms, top = torch.exp(logs - larger), larger
            if cell is None:
                every.add(logs, terms, shrunk, len(rows))
                continue
            level = torch.index_select(self.levels[:, at : at + BLOCK].contiguous(), 0, cell)
            some.add(logs, terms, shrunk, len(rows), level < 1)
            every.add(logs, terms, shrunk, len(rows), level < 2)
        assert top is not None
        energy, distance = self._result(every, top, square)
        if cell is None:
            return energy, distance
        near, near_distance = self._result(some, top, square)
        root = (near - self.constant).clamp_min(0).sqrt()
        beyond = squared.clamp_min(0).sqrt() + root > torch.take(self.limits, cell)
        again = (near > self.exact_above) | beyond
        if distance is not None and near_distance is not None:
            distance = torch.where(again, distance, near_distance)
        return torch.where(again, energy, near), distance

    def _result(self, sums: "_Sums", top: Tensor, square: Tensor) -> tuple[Tensor, Tensor | None]:
        """(E, mean squared distance in units of y), (B,) each."""
        assert sums.total is not None
        energy = (self.constant - torch.log(sums.total) - top + square).squeeze(1)
        if sums.nearest is None:
            return energy, None
        mean = torch.topk(sums.nearest, self.k, dim=1)[0].mean(1)
        return energy, (square.squeeze(1) - mean).clamp_min(0) / (self.unit * self.unit)


class _Sums:
    """A sum of terms and the k largest logs, block by block."""

    def __init__(self, k: int):
        self.k = k
        self.total: Tensor | None = None
        self.nearest: Tensor | None = None

    def add(self, logs: Tensor, terms: Tensor, shrunk: Tensor | None, size: int, counts: Tensor | None = None) -> None:
        """`terms` (B, size) relative to the largest up to now; `shrunk` (B, 1): what the ones before have become."""
        if counts is not None:
            terms = torch.where(counts, terms, 0.0)
        added = terms.sum(1, keepdim=True)
        self.total = added if self.total is None or shrunk is None else self.total * shrunk + added
        if not self.k:
            return
        if counts is not None:
            logs = torch.where(counts, logs, -math.inf)
        found = torch.topk(logs, min(self.k, size), dim=1)[0]
        self.nearest = found if self.nearest is None else torch.cat([self.nearest, found], dim=1)


class MixtureGraph(nn.Module):
    """`Mixture` of rows y (B, D) to energies (B,), nats."""

    whiten: Tensor
    shift: Tensor
    pick: Tensor
    constants: Tensor
    constant: Tensor

    def __init__(self, mixture: Mixture):
        super().__init__()
        (whiten, shift, constants), (k, d) = mixture._products, mixture.means.shape
        pick = np.kron(np.eye(k), np.ones((d, 1)))  # sums each component's numbers
        constant, nats = 0.5 * d * math.log(2 * math.pi), math.log(2)
        whiten, shift, constants = whiten * math.sqrt(nats), shift * math.sqrt(nats), constants * nats
        hold(self, whiten=whiten, shift=shift, pick=pick, constants=constants, constant=constant)

    def forward(self, y: Tensor) -> Tensor:
        """-log sum_k w_k N(y; m_k, C_k)."""
        z = y @ self.whiten + self.shift
        logs = self.constants - z.square() @ self.pick
        top = logs.amax(1, keepdim=True)
        return (self.constant - top - torch.log(torch.exp(logs - top).sum(1, keepdim=True))).squeeze(1)


def _levels(kernel: IVFKernelDensityEnergy) -> Tensor:
    """(C, N) uint8: 0 where a stored row is a candidate of a cell, 1 where it counts in the second sum, 2 elsewhere."""
    (c, n), wide = (len(kernel.centers), len(kernel.rows)), EXACT // 2
    levels = torch.full((c, n), 2 if n > EXACT else 1, dtype=torch.uint8)
    for cell in range(c):
        if n > EXACT:
            levels[cell, kernel._nearest(cell, cell + 1, wide)[0].cpu()] = 1
        levels[cell, kernel._lists[cell].cpu()] = 0
    return levels
