"""A kernel density estimate by an inverted file: sums over the rows of a cell, and over all rows where E is high.

    E(x) = -log (1/N) sum_{i in L(x)} N(x; x_i, t I),    L(x) the M rows nearest to the centre of x's cell.

Kernels are narrow, so a few rows have most of the sum. Cells are those of k-means (Jégou, Douze & Schmid 2011). The
rows left out raise E by log(1 + rest / kept), which is small where E is low. So E above tau is computed again with all
rows. M and tau are chosen on stored rows, each left out, as the cheapest pair with an error of at most `gap` nats on
average.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.energy.density.kde import OfRows, squared_distances
from thalweg.energy.density.kernel_sums import (
    BITS,
    FAINT,
    ROWS,
    TOGETHER,
    KernelSum,
    Queries,
    kernel_sums,
    lift,
    lift_list,
    lifted_about,
)

SMALL = 1024  # rows; fewer are summed one and all, in float64
EXACT = 50_000  # rows; beyond, the second sum takes the nearest half of so many
LENGTHS = tuple(part * 2**k for k in range(5, 11) for part in (4, 5, 6, 7))  # 128, 160, 192, 224, 256, 320 ...
TRIAL = 2000  # stored rows that M and tau are chosen on, a fifth of all at most; the centres have not seen them
MARGIN = 0.9  # of the gap
RARE = 0.002  # of the rows at least are summed over all: those of the highest energies, lest an outlier set tau
ROUNDS = 10  # of k-means
CELLS = 2.0  # cells over sqrt(N)
SINGLE = 2.0**-21  # of a squared distance to the middle: what float32 may put a sum off by, in bits
MADE = ("_whole", "_sums", "_cells", "_near_cells")  # of rows and centres, by `_begin_sums`
FAR = 16 * BITS  # of squared distance to the middle of the centres


class SearchParams(NamedTuple):
    """The parameters of the search, and its error and cost on stored rows."""

    num_candidates: int  # M
    exact_above: float  # tau, nats
    mean_loss: float  # nats
    exact_share: float  # of the rows, computed with all rows

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """From its four numbers."""
        return cls(int(numbers[0]), *map(float, numbers[1:]))


WHOLE = SearchParams(0, -math.inf, 0.0, 1.0)


class IVFKernelDensityEnergy(OfRows):
    """`KernelDensityEnergy` within `gap` nats on average, and exact where energies are high (up to 50,000 rows).

    A row costs about (sqrt(N) + M + a N) D multiplications, a the share above tau. Up to 1,024 rows, and with gap=0, it
    is exact. Energies are in float64, sums in float32 where that keeps 1e-3 nats.

    Args:
        rows: Stored rows (N, D).
        t: Noise variance, in squared units of the rows.
        gap: Mean error in nats.
        known: `search` and `centers` of an earlier fit, which are then not searched again.
    """

    centers: Tensor
    _squares: Tensor  # |rows|²
    _lists: Tensor  # of each cell, the rows nearest to its centre

    def __init__(
        self, rows: Tensor, *, t: float = 1.0, gap: float = 0.01, known: tuple[SearchParams, Tensor] | None = None
    ):
        super().__init__(rows, t)
        check.non_negative(gap=gap)
        self.gap = gap
        self.unit = math.sqrt(0.5 * math.log2(math.e) / t)  # of length, in which a squared distance is in bits
        self.rows = self.rows * self.unit
        few = len(rows) <= SMALL or gap == 0
        middle = self.rows.mean(0, keepdim=True)
        centers = known[1] if known else middle if few else _centers(_without(self.rows, self._trial()))
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("_squares", self.rows.square().sum(1), persistent=False)
        self.register_buffer("_lists", torch.empty(0, 0, dtype=torch.int64, device=rows.device), persistent=False)
        self._begin_sums()
        self.search = WHOLE
        if known or not few:
            length, blocks = known[0].num_candidates if known else max(LENGTHS), range(0, len(centers), 64)
            self._lists = torch.cat([self._nearest(i, i + 64, length) for i in blocks])
            self.search = known[0] if known else self._choose()
            self._lists = self._lists[:, : self.search.num_candidates].clone()

    def _begin_sums(self) -> None:
        self._whole = KernelSum(self.rows, self.rows.mean(0), exact=len(self.rows) <= SMALL)
        self._sums: dict[tuple[int, int], KernelSum] = {}
        self._cells, self._near_cells = _Cells(self.centers), _NearCells(self.centers, self._whole.center)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """How a module moves: its buffers; the sums are made anew of these."""
        super()._apply(fn, recurse)
        self._begin_sums()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy keeps: all but the sums, which are made anew, and are far larger."""
        return {name: part for name, part in vars(self).items() if name not in MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin_sums()

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return self._energies(x, None, self.search).to(x.dtype)

    def leave_one_out(self) -> Float[Tensor, " n"]:
        """E of each stored row without itself; N >= 2."""
        return self._energies(None, torch.arange(len(self.rows), device=self.rows.device), self.search)

    def with_distances(self, x: Float[Tensor, "b d"] | None, k: int) -> tuple[Tensor, Tensor]:
        """(E, the mean squared distance to the k nearest rows considered), (B,) each, by one search.

        None for x: of each stored row without itself. The posterior of the noise level of a row depends on that
        distance alone (Livernoche et al. 2024). Neighbours outside L(x) make it too large; rows above tau are exact.
        """
        own = torch.arange(len(self.rows), device=self.rows.device) if x is None else None
        u, near = self._sums_of(x, own, self.search, k).unbind(1)
        return u, near / self.unit**2

    def rounding(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Nats that sums in float32 may put E(x) off by; 0 where they are in float64."""
        if not self._whole.narrow and not self.search.num_candidates:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        queries = self._placed(x, self.unit)[1] if self.search.num_candidates else None
        lifted = (lifted_about(self._whole.center, x, self.unit) if queries is None else queries).lifted
        return math.log(2) * SINGLE * -lifted[:, -2].double()

    def _energies(self, x: Tensor | None, own: Tensor | None, search: SearchParams) -> Tensor:
        return self._sums_of(x, own, search, 0)[:, 0]

    def _sums_of(self, x: Tensor | None, own: Tensor | None, search: SearchParams, k: int) -> Tensor:
        """(B, 2): E and the mean of k squared distances in bits, of rows x (B, D) or of the stored rows `own` (B,).

        The latter are left out of their sums.
        """
        n, d = self.rows.shape
        constant = math.log(n - (own is not None)) + 0.5 * d * math.log(2 * math.pi * self.t)
        x, unit = (self.rows[own], 1.0) if x is None else (x, self.unit)
        if search.num_candidates:
            faint = constant - math.log(2) * FAINT <= search.exact_above  # or else such sums are computed again
            out = self._near(x, unit, own, search.num_candidates, k, faint)
            again = (constant - math.log(2) * out[:, 0] > search.exact_above).nonzero().squeeze(1)
            if len(again):
                some, own = x[again], None if own is None else own[again]
                few = n <= EXACT
                out[again] = self._all(some, unit, own, k) if few else self._near(some, unit, own, EXACT // 2, k)
        else:
            out = self._all(x, unit, own, k)
        return torch.stack([constant - math.log(2) * out[:, 0], out[:, 1]], dim=1)

    def _all(self, x: Tensor, unit: float, own: Tensor | None, k: int) -> Tensor:
        everything = [(self._whole, torch.arange(len(x), device=x.device))] if len(x) else []
        return kernel_sums(lifted_about(self._whole.center, x, unit), everything, own, k)

    def _near(self, x: Tensor, unit: float, own: Tensor | None, length: int, k: int, faint: bool = True) -> Tensor:
        """log2 of the sums, and mean distances, over `length` candidates of each row's cell, cell by cell.

        `faint`: whether sums that float32 finds faint are computed in float64.
        """
        cell, queries = self._placed(x, unit)
        counts = torch.bincount(cell, minlength=len(self.centers)).tolist()
        places = _order(cell).split(counts)
        sums = ((self._sum(c, length), at) for c, at in enumerate(places) if len(at))
        return kernel_sums(queries, sums, own, k, faint=faint)

    def _placed(self, x: Tensor, unit: float) -> tuple[Tensor, Queries]:
        """(cells (B,), queries): about the middle of all rows where float32 keeps them apart from there, as a rule."""
        if not self._whole.narrow:
            return self._cells(x, unit)
        queries = lifted_about(self._whole.center, x, unit)
        return self._near_cells(queries), queries

    def _sum(self, c: int, length: int) -> KernelSum:
        """Of cell c; kept where the length is that of `search`."""
        if (c, length) in self._sums:
            return self._sums[c, length]
        near = self._lists[c, :length] if length <= self._lists.shape[1] else self._nearest(c, c + 1, length)[0]
        made = KernelSum(self.rows, self._whole.center if self._whole.narrow else self.centers[c], near)
        if length == self.search.num_candidates:
            self._sums[c, length] = made
        return made

    def _nearest(self, first: int, last: int, length: int) -> Tensor:
        """The indices of the `length` rows nearest to each of these centres, the nearest first."""
        squared = torch.addmm(self._squares, self.centers[first:last], self.rows.T, alpha=-2)
        return squared.topk(min(length, len(self.rows)), largest=False).indices

    def _choose(self) -> SearchParams:
        """The cheapest pair of M and tau, by the trial rows' energies with all rows.

        Losses have long tails: one row more may lose as much as the most that a trial row loses with the length before.
        """
        own = self._trial()
        x = self.rows[own]
        exact = self._energies(None, own, WHOLE)
        lengths = [length for length in LENGTHS if length < len(self.rows) / 2]
        choices, before, most = [WHOLE], None, len(x) - math.ceil(RARE * len(x))
        for length, energies in zip(lengths, self._trials(x, own, lengths), strict=True):
            u, order = energies.sort()
            losses = (energies - exact).clamp_min(0)
            unseen = (losses if before is None else before)[order].cummax(0).values
            lost, before = (losses[order].cumsum(0) + unseen) / len(x), losses
            kept = min(int((lost <= MARGIN * self.gap).sum()), most)
            if kept:
                choices.append(SearchParams(length, float(u[kept - 1]), float(lost[kept - 1]), 1 - kept / len(x)))
        whole = min(len(self.rows), EXACT // 2 if len(self.rows) > EXACT else EXACT)
        return min(choices, key=lambda r: r.num_candidates + len(self.centers) + r.exact_share * whole)

    def _trial(self) -> Tensor:
        return torch.arange(0, len(self.rows), max(5, len(self.rows) // TRIAL), device=self.rows.device)

    def _trials(self, x: Tensor, own: Tensor, lengths: list[int]) -> Tensor:
        """Energies (L, B) by the first of each row's candidates, for each of the lengths, by one search."""
        n, d = self.rows.shape
        cell, out = self._cells(x, 1.0)[0], x.new_empty(len(lengths), len(x))
        for c in cell.unique().tolist():
            at = (cell == c).nonzero().squeeze(1)
            near = self._lists[c, : lengths[-1]]
            bits = squared_distances(x[at], self.rows[near]).mul_(-math.log(2))
            bits[own[at, None] == near] = -math.inf
            parts = [part.logsumexp(1) for part in bits.tensor_split(lengths[:-1], dim=1)]
            out[:, at] = torch.stack(parts).logcumsumexp(0)
        return math.log(n - 1) + 0.5 * d * math.log(2 * math.pi * self.t) - out


class _Cells:
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


class _NearCells:
    """The cell of queries about a `middle`, by the products that their sums have; in float64 for those far from it."""

    def __init__(self, centers: Tensor, middle: Tensor):
        y = centers - middle
        self.centers, self.middle, self.lifted = centers, middle, lift_list(y, y.square().sum(1))

    def __call__(self, queries: Queries) -> Tensor:
        lifted, count = queries.lifted, len(self.centers)
        cell = torch.empty(len(lifted), dtype=torch.int64, device=lifted.device)
        products = lifted.new_empty(ROWS, count)
        for at in range(0, len(lifted), ROWS):
            block = lifted[at : at + ROWS]
            rows = len(block)
            if rows < TOGETHER:
                block = torch.cat([block, block.new_zeros(TOGETHER - rows, block.shape[1])])
            cell[at : at + rows] = _argmax(torch.mm(block, self.lifted, out=products[: len(block)]))[:rows]
        far = (lifted[:, -2] < -BITS).nonzero().squeeze(1)
        if len(far):
            cell[far] = _exact_cells(queries.x[far].detach().double() * queries.unit, self.centers)
        return cell


def _exact_cells(x: Tensor, centers: Tensor) -> Tensor:
    return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def _argmax(values: Tensor) -> Tensor:
    """Of each row; on the CPU NumPy's, which takes a seventh of the time."""
    return torch.from_numpy(values.numpy().argmax(1)) if values.device.type == "cpu" else values.argmax(1)


def _order(cells: Tensor) -> Tensor:
    """Rows by cell, in their order; by NumPy on the CPU, which counts numbers of 16 bits rather than compares them."""
    if cells.device.type != "cpu" or (len(cells) and int(cells.max()) > np.iinfo(np.uint16).max):
        return cells.argsort(stable=True)
    return torch.from_numpy(cells.numpy().astype(np.uint16).argsort(kind="stable"))


def _without(rows: Tensor, some: Tensor) -> Tensor:
    kept = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    kept[some] = False
    return rows[kept]


def _centers(rows: Tensor) -> Tensor:
    """2 sqrt(N) centres of k-means (Lloyd 1982) on up to 60 to 120 rows each, from evenly spaced ones."""
    k = round(CELLS * math.sqrt(len(rows)))
    some = rows[:: max(1, len(rows) // (60 * k))]
    centers = some[torch.linspace(0, len(some) - 1, k).long()].clone()
    for _ in range(ROUNDS):
        cell = torch.cat([squared_distances(block, centers).argmin(1) for block in some.split(1024)])
        sums = torch.zeros_like(centers).index_add_(0, cell, some)
        counts = torch.bincount(cell, minlength=k)
        there = counts > 0
        centers[there] = sums[there] / counts[there, None]
    return centers
