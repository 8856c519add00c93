"""A kernel density estimate by an inverted file: sums over the rows of a cell, and over all rows where E is high.

    E(x) = -log (1/N) sum_{i in L(x)} N(x; x_i, t I),    L(x) the M rows nearest to the centre of x's cell.

Kernels are narrow, so a few rows have most of the sum. Cells are those of k-means (Jégou, Douze & Schmid 2011). The
rows left out raise E by log(1 + rest / kept), which is small where E is low. So E above tau is computed again with all
rows. So is a row at the edge of what its list reaches. Take lengths in which a squared distance is in bits. Let the
list reach to R from the centre, x lie d from it, and S be the sum over the list. A row left out is at least R - d
from x, so its term is at most 2^-(R - d)², less than S where

    d + sqrt(-log2 S) < R.

Where the left side is above kappa R all rows are summed. In many columns the rows left out are farther than that, and
kappa is above 1. M, tau and kappa are chosen on stored rows, each left out: none below kappa loses more than `WORST`,
with the list one step shorter where these rows are few, and the mean error is `gap` nats at most, at the least cost.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.energy.density.cells import Cells, NearCells, centers_of, order_of, without
from thalweg.energy.density.kde import OfRows, squared_distances
from thalweg.energy.density.kernel_sums import FAINT, KernelSum, Queries, kernel_sums, lifted_about
from thalweg.energy.shape import check_rows

SMALL = 1024  # rows; fewer are summed one and all, in float64
EXACT = 50_000  # rows; beyond, the second sum takes the nearest half of so many
LENGTHS = tuple(part * 2**k for k in range(5, 11) for part in (4, 5, 6, 7))  # 128, 160, 192, 224, 256, 320 ...
TRIAL = 10_000  # stored rows that kappa is chosen on, or up to twice as many
UNSEEN = 5  # every fifth of them, which the centres have not seen: M and tau are chosen on these
WORST = 0.6  # nats that one of them may lose; with the list one step shorter where they are fewer than `TRIAL`
ROOM = 0.98  # of the ratio at which one loses more, as new rows may at a lower one
DEARER = 1.4  # the share of new rows that are summed again, over that of the trial rows, at most or nearly so
SEARCH = 300  # terms of a sum that take as long as to find a row's cell and to order rows by it, beside its products
FEW = 0.01  # of the rows; so many, whose sums float32 finds faint, lie above tau at most
MARGIN = 0.9  # of the gap
RARE = 0.002  # of the rows at least are summed over all: those of the highest energies, lest an outlier set tau
SINGLE = 2.0**-21  # of a squared distance to the middle: what float32 may put a sum off by, in bits
MADE = ("_whole", "_sums", "_stacks", "_cells", "_near_cells", "reaches")  # of rows and centres, by `_begin_sums`


class SearchParams(NamedTuple):
    """The parameters of the search, and its error and cost on stored rows."""

    num_candidates: int  # M
    exact_above: float  # tau, nats
    mean_loss: float  # nats
    exact_share: float  # of the rows, computed with all rows
    exact_beyond: float = sys.float_info.max  # kappa; earlier fits have none

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
        centers = known[1] if known else middle if few else centers_of(without(self.rows, self._trial()[::UNSEEN]))
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("_squares", self.rows.square().sum(1), persistent=False)
        self.register_buffer("_lists", torch.empty(0, 0, dtype=torch.int64, device=rows.device), persistent=False)
        self.search = WHOLE
        self._begin_sums()
        if known or not few:
            length = min(known[0].num_candidates, len(rows)) if known else max(LENGTHS)  # a damaged file may have any
            self._lists = torch.cat([self._nearest(i, i + 64, length) for i in range(0, len(centers), 64)])
            self.search = known[0]._replace(num_candidates=length) if known else self._choose()
            self._lists = self._lists[:, : self.search.num_candidates].clone()
            self._begin_sums()

    def _begin_sums(self) -> None:
        self._whole = KernelSum(self.rows, self.rows.mean(0), exact=len(self.rows) <= SMALL)
        self._sums: dict[tuple[int, int], KernelSum] = {}
        self._stacks: list[Tensor] = []  # of all cells' lists, one behind the other: products read them sooner
        self._cells, self._near_cells = Cells(self.centers), NearCells(self.centers, self._whole.center)
        self.reaches = self._reach(self.search.num_candidates)

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
        """E(x) in nats. UserError for rows of another shape."""
        check_rows(x, self.shape)
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

    def limits(self, beyond: float | None = None) -> Tensor:
        """kappa R, (C,): d + sqrt(-log2 S) above which all rows are summed, by cell; the kappa of `search` if None."""
        return self.reaches * (self.search.exact_beyond if beyond is None else beyond)

    def rounding(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Nats that sums in float32 may put E(x) off by; 0 where they are in float64."""
        if not self._whole.narrow and not self.search.num_candidates:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        queries = self._placed(x, self.unit)[2] if self.search.num_candidates else None
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
            least = math.log2(math.e) * (constant - search.exact_above)  # log2 of a sum whose row is not above tau
            limits = self.limits(search.exact_beyond)
            faint = least <= FAINT and math.sqrt(-FAINT) <= float(limits.max())  # or else they are computed again
            cell, squared, queries = self._placed(x, unit)
            out = self._near(cell, queries, own, search.num_candidates, k, faint)
            beyond = squared.sqrt() + out[:, 0].clamp_max(0).neg().sqrt() > limits[cell]
            again = (beyond | (out[:, 0] < least)).nonzero().squeeze(1)
            if len(again):
                some, own = x[again], None if own is None else own[again]
                few = n <= EXACT
                out[again] = self._all(some, unit, own, k) if few else self._wide(some, unit, own, k)
        else:
            out = self._all(x, unit, own, k)
        return torch.stack([constant - math.log(2) * out[:, 0], out[:, 1]], dim=1)

    def _all(self, x: Tensor, unit: float, own: Tensor | None, k: int) -> Tensor:
        everything = [(self._whole, torch.arange(len(x), device=x.device))] if len(x) else []
        return kernel_sums(lifted_about(self._whole.center, x, unit), everything, own, k)

    def _wide(self, x: Tensor, unit: float, own: Tensor | None, k: int) -> Tensor:
        cell, _, queries = self._placed(x, unit)
        return self._near(cell, queries, own, EXACT // 2, k)

    def _near(
        self, cell: Tensor, queries: Queries, own: Tensor | None, length: int, k: int, faint: bool = True
    ) -> Tensor:
        """log2 of the sums, and mean distances, over `length` candidates of each row's cell, cell by cell.

        `faint`: whether sums that float32 finds faint are computed in float64.
        """
        counts = torch.bincount(cell, minlength=len(self.centers)).tolist()
        places = order_of(cell).split(counts)
        sums = ((self._sum(c, length), at) for c, at in enumerate(places) if len(at))
        return kernel_sums(queries, sums, own, k, faint=faint)

    def _placed(self, x: Tensor, unit: float) -> tuple[Tensor, Tensor, Queries]:
        """(cells (B,), squared distances to their centres (B,), queries).

        Queries are about the middle of all rows where float32 keeps them apart from there, as a rule.
        """
        if not self._whole.narrow:
            cell, queries = self._cells(x, unit)
            return cell, -queries.lifted[:, -2].double(), queries
        queries = lifted_about(self._whole.center, x, unit)
        return *self._near_cells(queries), queries

    def _reach(self, length: int) -> Tensor:
        """R of each cell with lists of `length`, (C,) in float64; no list, 0."""
        if not length:
            return self.centers.new_zeros(len(self.centers))
        return (self.rows[self._lists[:, length - 1]] - self.centers).square().sum(1).sqrt()

    def _sum(self, c: int, length: int) -> KernelSum:
        """Of cell c; kept where the length is that of `search`."""
        if (c, length) in self._sums:
            return self._sums[c, length]
        near = self._lists[c, :length] if length <= self._lists.shape[1] else self._nearest(c, c + 1, length)[0]
        made = KernelSum(self.rows, self._whole.center if self._whole.narrow else self.centers[c], near)
        if length == self.search.num_candidates:
            self._sums[c, length] = made
            if made.parts and not self._stacks:
                with torch.inference_mode(False):  # or else no other list could be written outside of it
                    self._stacks = [part.new_empty(len(self.centers), *part.shape) for part in made.parts]
            made.parts = [stack[c].copy_(part) for stack, part in zip(self._stacks, made.parts, strict=False)]
        return made

    def _nearest(self, first: int, last: int, length: int) -> Tensor:
        """The indices of the `length` rows nearest to each of these centres, the nearest first."""
        squared = torch.addmm(self._squares, self.centers[first:last], self.rows.T, alpha=-2)
        return squared.topk(min(length, len(self.rows)), largest=False).indices

    def _choose(self) -> SearchParams:
        """The cheapest M, tau and kappa, by the trial rows' energies with all rows.

        Losses have long tails: one row more may lose as much as the most that a row loses with the length before.
        """
        own = self._trial()
        x, unseen = self.rows[own], slice(None, None, UNSEEN)
        exact = self._energies(None, own, WHOLE)
        lengths = [length for length in LENGTHS if length < len(self.rows) / 2]
        tried, cell, squared = self._trials(x, own, lengths)
        constant = math.log(len(self.rows) - 1) + 0.5 * x.shape[1] * math.log(2 * math.pi * self.t)
        choices, before, earlier = [WHOLE], None, None
        for length, energies in zip(lengths, tried, strict=True):
            bits = math.log2(math.e) * (energies - constant)
            ratios = (squared.sqrt() + bits.clamp_min(0).sqrt()) / self._reach(length)[cell]
            losses = (energies - exact).clamp_min(0)
            beyond = _least_beyond(ratios, losses if earlier is None or len(own) >= TRIAL else earlier)
            some, earlier = losses[unseen], losses
            again, faint = ratios[unseen] > beyond, bits[unseen] > -FAINT
            if float(faint.double().mean()) < FEW:  # all rows in float64 take less time than a list of each cell
                again |= faint
            chosen = self._limited(length, beyond, energies[unseen], some, again, before)
            choices, before = [*choices, *chosen], some
        whole = min(len(self.rows), EXACT // 2 if len(self.rows) > EXACT else EXACT)
        search = len(self.centers) + SEARCH
        return min(choices, key=lambda r: r.num_candidates + DEARER * r.exact_share * whole + search * (r is not WHOLE))

    def _limited(
        self, length: int, beyond: float, energies: Tensor, losses: Tensor, again: Tensor, before: Tensor | None
    ) -> list[SearchParams]:
        """With the highest tau for these rows, of which some are computed `again`; [] where there is none."""
        count, most = len(losses), len(losses) - math.ceil(RARE * len(losses))
        u, order = energies.masked_fill(again, math.inf).sort()
        losses = losses.masked_fill(again, 0.0)
        unseen = (losses if before is None else before.masked_fill(again, 0.0))[order].cummax(0).values
        lost = (losses[order].cumsum(0) + unseen) / count
        kept = min(int((lost <= MARGIN * self.gap).sum()), int((~again).sum()), most)
        if not kept:
            return []
        return [SearchParams(length, float(u[kept - 1]), float(lost[kept - 1]), 1 - kept / count, beyond)]

    def _trial(self) -> Tensor:
        """Indices of stored rows that the search is chosen on."""
        return torch.arange(0, len(self.rows), max(1, len(self.rows) // TRIAL), device=self.rows.device)

    def _trials(self, x: Tensor, own: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Energies (L, B) by the first of each row's candidates, for each of the lengths, by one search.

        Then the cells and the squared distances to their centres, (B,).
        """
        n, d = self.rows.shape
        cell, out = self._cells(x, 1.0)[0], x.new_empty(len(lengths), len(x))
        for c in cell.unique().tolist():
            at = (cell == c).nonzero().squeeze(1)
            near = self._lists[c, : lengths[-1]]
            bits = squared_distances(x[at], self.rows[near]).mul_(-math.log(2))
            bits[own[at, None] == near] = -math.inf
            parts = [part.logsumexp(1) for part in bits.tensor_split(lengths[:-1], dim=1)]
            out[:, at] = torch.stack(parts).logcumsumexp(0)
        energies = math.log(n - 1) + 0.5 * d * math.log(2 * math.pi * self.t) - out
        return energies, cell, (x - self.centers[cell]).square().sum(1)


def _least_beyond(ratios: Tensor, losses: Tensor) -> float:
    """kappa: below the lowest ratio of a row that loses more than `WORST`, and of `RARE` rows."""
    rare = ratios.sort().values[len(ratios) - math.ceil(RARE * len(ratios))]
    losing = ratios[losses > WORST]
    return float(min(rare, ROOM * losing.min()) if len(losing) else rare)
