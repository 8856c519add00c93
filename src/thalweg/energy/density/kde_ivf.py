"""A kernel density estimate by an inverted file: sums over the rows of a cell, and over all rows where E is high.

    E(x) = -log (1/N) sum_{i in L(x)} N(x; x_i, t I),    L(x) the M rows nearest to the centre of x's cell.

Kernels are narrow, so a few rows have most of the sum. Cells are those of k-means (Jégou, Douze & Schmid 2011). The
rows left out raise E by log(1 + rest / kept), which is small where E is low. So E above tau is computed again with all
rows. M and tau are chosen on stored rows, each left out, as the cheapest pair with an error of at most `gap` nats on
average.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.energy.density.kde import OfRows, squared_distances

SMALL = 1024  # rows; fewer are summed one and all, in float64
EXACT = 50_000  # rows; beyond, the second sum takes the nearest half of so many
LENGTHS = (256, 512, 1024, 2048, 4096)
TRIAL = 1000  # stored rows that M and tau are chosen on
ROUNDS = 10  # of k-means
ENTRIES = 131_072  # of a block of sums, so that it stays in the processor's cache
FAINT = -60.0  # log2 of a sum, below which float32 may have lost terms
BITS = 4096.0  # of squared distance to a centre; float32 keeps their differences to 1e-3 within these


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
        centers = known[1] if known else middle if few else _centers(self.rows)
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
        self._whole = _Sum(self.rows, self.rows.mean(0), exact=len(self.rows) <= SMALL)
        self._sums: dict[tuple[int, int], _Sum] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """How a module moves: its buffers; the sums are made anew of these."""
        super()._apply(fn, recurse)
        self._begin_sums()
        return self

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return self._energies(x.double() * self.unit, None, self.search).to(x.dtype)

    def leave_one_out(self) -> Float[Tensor, " n"]:
        """E of each stored row without itself; N >= 2."""
        return self._energies(self.rows, torch.arange(len(self.rows), device=self.rows.device), self.search)

    def with_distances(self, x: Float[Tensor, "b d"] | None, k: int) -> tuple[Tensor, Tensor]:
        """(E, the mean squared distance to the k nearest rows considered), (B,) each, by one search.

        None for x: of each stored row without itself. The posterior of the noise level of a row depends on that
        distance alone (Livernoche et al. 2024). Neighbours outside L(x) make it too large; rows above tau are exact.
        """
        own = torch.arange(len(self.rows), device=self.rows.device) if x is None else None
        scaled = self.rows if x is None else x.double() * self.unit
        u, near = self._sums_of(scaled, own, self.search, k).unbind(1)
        return u, near / self.unit**2

    def _energies(self, x: Tensor, own: Tensor | None, search: SearchParams) -> Tensor:
        return self._sums_of(x, own, search, 0)[:, 0]

    def _sums_of(self, x: Tensor, own: Tensor | None, search: SearchParams, k: int) -> Tensor:
        """(B, 2): E and the mean of k squared distances in bits, of scaled rows x (B, D).

        `own` (B,): their indices among the stored rows, which are left out.
        """
        n, d = self.rows.shape
        constant = math.log(n - (own is not None)) + 0.5 * d * math.log(2 * math.pi * self.t)
        if search.num_candidates:
            out = self._near(x, own, search.num_candidates, k)
            again = (constant - math.log(2) * out[:, 0] > search.exact_above).nonzero().squeeze(1)
            if len(again):
                own = None if own is None else own[again]
                few = n <= EXACT
                out[again] = self._whole(x[again], own, k) if few else self._near(x[again], own, EXACT // 2, k)
        else:
            out = self._whole(x, own, k)
        return torch.stack([constant - math.log(2) * out[:, 0], out[:, 1]], dim=1)

    def _near(self, x: Tensor, own: Tensor | None, length: int, k: int) -> Tensor:
        """log2 of the sums, and mean distances, over `length` candidates of each row's cell, cell by cell."""
        cell = torch.cat([squared_distances(block, self.centers).argmin(1) for block in x.split(1024)])
        order = cell.argsort(stable=True)
        counts = torch.bincount(cell, minlength=len(self.centers))
        places = order.split(counts.tolist())
        out = x.new_empty(len(x), 2)
        for c in counts.nonzero().squeeze(1).tolist():
            at = places[c]
            out[at] = self._sum(c, length)(x[at], None if own is None else own[at], k)
        return out

    def _sum(self, c: int, length: int) -> "_Sum":
        """Of cell c; kept where the length is that of `search`."""
        if (c, length) in self._sums:
            return self._sums[c, length]
        near = self._lists[c, :length] if length <= self._lists.shape[1] else self._nearest(c, c + 1, length)[0]
        made = _Sum(self.rows[near], self.centers[c], near)
        if length == self.search.num_candidates:
            self._sums[c, length] = made
        return made

    def _nearest(self, first: int, last: int, length: int) -> Tensor:
        """The indices of the `length` rows nearest to each of these centres, the nearest first."""
        squared = torch.addmm(self._squares, self.centers[first:last], self.rows.T, alpha=-2)
        return squared.topk(min(length, len(self.rows)), largest=False).indices

    def _choose(self) -> SearchParams:
        """The cheapest pair of M and tau, by the trial rows' energies with all rows."""
        own = torch.arange(0, len(self.rows), max(1, len(self.rows) // TRIAL), device=self.rows.device)
        x = self.rows[own]
        exact = self._energies(x, own, WHOLE)
        choices = [WHOLE]
        for length in LENGTHS:
            if length < len(self.rows) / 2:
                u, order = self._energies(x, own, SearchParams(length, math.inf, 0, 0)).sort()
                lost = (u - exact[order]).clamp_min(0).cumsum(0) / len(x)
                kept = int((lost <= self.gap).sum())
                if kept:
                    choices.append(SearchParams(length, float(u[kept - 1]), float(lost[kept - 1]), 1 - kept / len(x)))
        whole = min(len(self.rows), EXACT // 2 if len(self.rows) > EXACT else EXACT)
        return min(choices, key=lambda r: r.num_candidates + len(self.centers) + r.exact_share * whole)


class _Sum:
    """(log2 sum_j 2^-|x - y_j|², mean of the k least |x - y_j|²) over rows y (M, D), about a center (D,).

    In float32 the product of (x, -|x|², 1) and (2 y, 1, -|y|²) gives -|x - y|², and terms are summed directly. Rows for
    which that is too coarse are computed in float64, relative to their largest term. `places`: the indices of y among
    all rows.
    """

    def __init__(self, y: Tensor, center: Tensor, places: Tensor | None = None, *, exact: bool = False):
        self.y, self.center, self.places = y - center, center, places
        self.square = self.y.square().sum(1)
        self.narrow = not exact and float(self.square.max()) < BITS
        self.lifted = torch.empty(0)
        if self.narrow:
            one = torch.ones_like(self.square)
            self.lifted = torch.cat([2 * self.y, one[:, None], -self.square[:, None]], dim=1).T.float().contiguous()

    def __call__(self, x: Tensor, own: Tensor | None, k: int) -> Tensor:
        x, at = x - self.center, None if own is None else self._columns(own)
        square, k = x.square().sum(1), min(k, len(self.y) - (own is not None))
        if not self.narrow or x.requires_grad:
            return self._fine(x, square, at, k)
        out = self._coarse(x, square, at, k)
        faint = ((out[:, 0] < FAINT) | (square > BITS)).nonzero().squeeze(1)
        if len(faint):
            out[faint] = self._fine(x[faint], square[faint], None if at is None else at[faint], k)
        return out

    def _coarse(self, x: Tensor, square: Tensor, at: Tensor | None, k: int) -> Tensor:
        lifted = torch.cat([x, -square[:, None], torch.ones_like(square)[:, None]], dim=1).float()
        total, near = lifted.new_empty(len(x)), lifted.new_zeros(len(x))
        for part in self._blocks(len(x)):
            bits = lifted[part] @ self.lifted
            _leave_out(bits, at, part)
            if k:
                near[part] = bits.topk(k, dim=1, sorted=False).values.mean(1)
            total[part] = bits.exp2_().sum(1)
        return torch.stack([total.double().log2(), -near.double().clamp_max(0)], dim=1)

    def _fine(self, x: Tensor, square: Tensor, at: Tensor | None, k: int) -> Tensor:
        out = []
        for part in self._blocks(len(x)):
            bits, near = torch.addmm(-self.square, x[part], self.y.T, alpha=2), torch.zeros_like(square[part])
            _leave_out(bits, at, part)
            if k:
                near = (square[part] - bits.topk(k, dim=1, sorted=False).values.mean(1)).clamp_min(0)
            most = bits.detach().amax(1, keepdim=True)
            if bits.requires_grad:
                total = (bits - most).exp2().sum(1)
            else:
                total = bits.sub_(most).clamp_min_(-120.0).exp2_().sum(1)
            out.append(torch.stack([total.log2() + most.squeeze(1) - square[part], near], dim=1))
        return torch.cat(out) if out else x.new_zeros(0, 2)

    def _blocks(self, count: int) -> list[slice]:
        size = max(16, ENTRIES // len(self.y))
        return [slice(i, i + size) for i in range(0, count, size)]

    def _columns(self, own: Tensor) -> Tensor:
        if self.places is None:
            return own
        column = own.new_full((int(max(self.places.max(), own.max())) + 1,), -1)
        column[self.places] = torch.arange(len(self.places), device=own.device)
        return column[own]


def _leave_out(bits: Tensor, at: Tensor | None, part: slice) -> None:
    if at is not None:
        here = (at[part] >= 0).nonzero().squeeze(1)
        bits[here, at[part][here]] = -math.inf


def _centers(rows: Tensor) -> Tensor:
    """sqrt(N) centres of k-means (Lloyd 1982) on 60 to 120 rows each, from evenly spaced ones."""
    k = round(math.sqrt(len(rows)))
    some = rows[:: max(1, len(rows) // (60 * k))]
    centers = some[torch.linspace(0, len(some) - 1, k).long()].clone()
    for _ in range(ROUNDS):
        cell = torch.cat([squared_distances(block, centers).argmin(1) for block in some.split(1024)])
        sums = torch.zeros_like(centers).index_add_(0, cell, some)
        counts = torch.bincount(cell, minlength=k)
        there = counts > 0
        centers[there] = sums[there] / counts[there, None]
    return centers
