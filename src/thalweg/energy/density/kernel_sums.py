"""Sums of Gaussian kernels over a list of rows, in float32 where that is precise enough and in float64 elsewhere.

    log2 sum_j 2^-|z - y_j|²,    and the mean of the k least |z - y_j|²

In float32 the product of (z, -|z|², 1) and (2 y, 1, -|y|²) gives -|z - y|², whose powers of two are summed directly.
Powers of e take three quarters of their time on an Intel Xeon, and 2.9 times as long on an AMD EPYC.
Terms are held at 2^-120: smaller ones would be subnormal, at twice the time. All blocks use one buffer, as fresh ones
take longer to come by than to fill. A row's sum does not depend on the rows beside it: the matrix product of four rows
or more has the same roundings row by row, so fewer rows are filled up to four.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ENTRIES = 262_144  # of a block of sums: so that it stays in the cache, and the calls are few
WIDTH = 4096  # rows of the list in a block, at most
ROWS = 2048  # lifted at once, so that they stay in the processor's cache
TOGETHER = 4  # rows in a product, at least
LEAST = -120.0  # log2 of a term, below which it is set to that
GROUPS = 64  # of columns, among whose maxima the largest numbers are sought; twice as many from FEW columns each on
FEW = 16
SORTED = 192  # numbers that are sorted sooner than parted
NEVER = -1e30  # log2 of a term of a column that fills a list up
FAINT = -85.0  # log2 of a sum, below which float32 may have lost more than 1e-6 of it
BITS = 4096.0  # of squared distance to a centre; float32 keeps their differences to 1e-3 within these


class Queries(NamedTuple):
    """Rows x (B, D), the unit that takes them to that of the stored rows, and the same about a centre in float32.

    `lifted`: (z, -|z|², 1) of z = unit x - centre, (B, D + 2). Where that is too coarse x itself is looked at.
    """

    x: Tensor
    unit: float
    lifted: Tensor

    def about(self, center: Tensor, at: Tensor) -> Tensor:
        """z in float64, of some rows."""
        return self.x[at].double() * self.unit - center


def lift(z: Tensor, out: Tensor) -> None:
    """Write (z, -|z|², 1) to `out` (B, D + 2)."""
    out[:, :-2], out[:, -2], out[:, -1] = z, -z.square().sum(1), 1.0


def lifted_about(center: Tensor, x: Tensor, unit: float) -> Queries:
    """Rows x (B, D), whose `unit` takes them to that of the centre (D,), about it."""
    lifted = torch.empty(len(x), x.shape[1] + 2, device=x.device)
    for at in range(0, len(x), ROWS):
        lift(x.detach()[at : at + ROWS].double() * unit - center, lifted[at : at + ROWS])
    return Queries(x, unit, lifted)


class KernelSum:
    """(log2 sum_j 2^-|z - y_j|², mean of the k least |z - y_j|²) over `rows[places]`, all rows if None.

    Args:
        rows: All stored rows (N, D), in units in which a squared distance is in bits.
        center: What lifted queries are relative to, (D,).
        places: The indices of the list (M,).
        exact: In float64, relative to the largest term.
    """

    def __init__(self, rows: Tensor, center: Tensor, places: Tensor | None = None, *, exact: bool = False):
        self.rows, self.center, self.places = rows, center, places
        self.length = len(rows) if places is None else len(places)
        y, square = self._list()
        self.narrow = not exact and float(square.max()) < BITS
        self.parts = _parted(lift_list(y, square)) if self.narrow else []

    def coarse(self, lifted: Tensor, own: Tensor | None, k: int, total: Tensor, near: Tensor, buffer: Tensor) -> None:
        """Write sum_j 2^-|z - y_j|² and, for k > 0, the mean of the k largest -|z - y_j|², (b,) each, in float32.

        `lifted` (b, D + 2): the queries about this centre. `own` (b,): their own indices among all rows, which are left
        out. `buffer`: what is overwritten, `buffer_size()` numbers. Where it is not `narrow` it writes 0: too faint for
        float32.
        """
        if not self.narrow:
            total.zero_()
            return
        own, k = self._left_out(own, k)
        if len(lifted) < TOGETHER:
            more = torch.cat([lifted, lifted.new_zeros(TOGETHER - len(lifted), lifted.shape[1])])
            sums, means = more.new_empty(TOGETHER), more.new_empty(TOGETHER)
            self._write(more, own, k, sums, means, buffer)
            total.copy_(sums[: len(lifted)])
            near.copy_(means[: len(lifted)])
        else:
            self._write(lifted, own, k, total, near, buffer)

    def _write(self, lifted: Tensor, own: Tensor | None, k: int, total: Tensor, near: Tensor, buffer: Tensor) -> None:
        size = max(16, ENTRIES // self.parts[0].shape[1])
        for first, last in _blocks(len(lifted), size):
            block, found, sums = lifted[first:last], [], total[first:last]
            for i, part in enumerate(self.parts):
                bits = buffer[: len(block) * part.shape[1]].view(len(block), part.shape[1])
                torch.mm(block, part, out=bits)
                if own is not None:
                    _leave_out(bits, own[first:last], i * part.shape[1])
                if k:
                    found.append(_largest(bits, k))
                bits.clamp_min_(LEAST).exp2_()
                if i == 0:
                    torch.sum(bits, 1, out=sums)
                else:
                    sums += bits.sum(1)
            if k:
                most = torch.cat(found, 1).topk(k, dim=1, sorted=False).values if len(found) > 1 else found[0]
                torch.mean(most, 1, out=near[first:last])

    def fine(self, queries: Queries, at: Tensor, own: Tensor | None, k: int) -> Tensor:
        """(log2 of the sum, mean of the k least |z - y_j|²), (b, 2) in float64."""
        (y, norm), z, out = self._list(), queries.about(self.center, at), []
        own, k = self._left_out(None if own is None else own[at], k)
        norms = z.square().sum(1)
        for first, last in _blocks(len(z), max(16, ENTRIES // len(y))):
            square, bits = norms[first:last], torch.addmm(-norm, z[first:last], y.T, alpha=2)
            near = torch.zeros_like(square)
            if own is not None:
                _leave_out(bits, own[first:last], 0)
            if k:
                near = (square - bits.topk(k, dim=1, sorted=False).values.mean(1)).clamp_min(0)
            most = bits.detach().amax(1, keepdim=True)
            if bits.requires_grad:
                total = (bits - most).exp2().sum(1)
            else:
                total = bits.sub_(most).clamp_min_(LEAST).exp2_().sum(1)
            out.append(torch.stack([total.log2() + most.squeeze(1) - square, near], dim=1))
        return torch.cat(out) if out else z.new_zeros(0, 2)

    def _list(self) -> tuple[Tensor, Tensor]:
        y = (self.rows if self.places is None else self.rows[self.places]) - self.center
        return y, y.square().sum(1)

    def _left_out(self, own: Tensor | None, k: int) -> tuple[Tensor | None, int]:
        """Where in the list the queries themselves stand, -1: nowhere; and how many of the others are the nearest k."""
        if own is None:
            return None, min(k, self.length)
        k = min(k, self.length - 1)
        if self.places is None:
            return own, k
        column = own.new_full((int(max(self.places.max(), own.max())) + 1,), -1)
        column[self.places] = torch.arange(len(self.places), device=own.device)
        return column[own], k


def kernel_sums(
    queries: Queries,
    groups: Iterable[tuple[KernelSum, Tensor]],
    own: Tensor | None,
    k: int,
    *,
    faint: bool = True,
) -> Tensor:
    """(log2 of the sum, mean of the k least squared distances) of each query, (B, 2) in float64.

    `groups`: sums, and the queries whose lifted rows are about their centres. Not `faint`: a sum below 2^`FAINT` need
    not be right, only as small.
    """
    out = torch.empty(len(queries.x), 2, dtype=torch.float64, device=queries.x.device)
    groups = list(groups)
    if queries.x.requires_grad:
        for part, at in groups:
            out[at] = part.fine(queries, at, own, k)
        return out
    order = torch.cat([at for _, at in groups]) if groups else torch.arange(0, device=out.device)
    lifted, left_out = queries.lifted.index_select(0, order), None if own is None else own[order]
    total, near, first = lifted.new_empty(len(out)), lifted.new_zeros(len(out)), 0
    buffer = lifted.new_empty(ENTRIES + TOGETHER * WIDTH)
    for part, at in groups:
        here = slice(first, first + len(at))
        mine = None if left_out is None else left_out[here]
        part.coarse(lifted[here], mine, k, total[here], near[here], buffer)
        first = here.stop
    out[order] = torch.stack([total.double().log2(), -near.double().clamp_max(0)], dim=1)
    again = queries.lifted[:, -2] < -BITS
    if faint or not all(part.narrow for part, _ in groups):
        again |= out[:, 0] < FAINT
    if again.any():
        for part, at in groups:
            some = at[again[at]]
            if len(some):
                out[some] = part.fine(queries, some, own, k)
    return out


def lift_list(y: Tensor, square: Tensor) -> Tensor:
    """(2 y, 1, -|y|²) by column, (D + 2, M)."""
    return torch.cat([2 * y, torch.ones_like(square)[:, None], -square[:, None]], dim=1).T.float().contiguous()


def _parted(lifted: Tensor) -> list[Tensor]:
    """A list (D + 2, M) in equal parts of `WIDTH` at most; filled up to whole groups where there are `GROUPS`."""
    length = lifted.shape[1]
    count = math.ceil(length / WIDTH)
    step = 2 * GROUPS if length > FEW * GROUPS else GROUPS if length > 4 * GROUPS else 1
    width = step * math.ceil(length / (count * step))
    if count * width > length:
        filled = lifted.new_zeros(len(lifted), count * width)
        filled[-1] = NEVER
        filled[:, :length] = lifted
        lifted = filled
    return [part.contiguous() for part in lifted.split(width, dim=1)]


def _blocks(count: int, size: int) -> list[tuple[int, int]]:
    """(first, last) of blocks of `size`; the last one has `TOGETHER` or more where there are as many."""
    starts = list(range(0, max(1, count - TOGETHER + 1), size)) if count else []
    return list(zip(starts, [*starts[1:], count], strict=True))


def _largest(numbers: Tensor, k: int) -> Tensor:
    """The k largest of each row, (b, k).

    They are in those k groups of columns whose maxima are largest. On the CPU these are sought among fewer numbers, by
    NumPy, which takes half as long as `topk`; what is found is the same.
    """
    (b, m), groups = numbers.shape, GROUPS if numbers.shape[1] < FEW * GROUPS else 2 * GROUPS
    if numbers.device.type != "cpu":
        return numbers.topk(k, dim=1, sorted=False).values
    size = m // groups
    if k < groups and size >= 4 and m == size * groups:
        maxima = numbers.view(b, size, groups).amax(1).numpy()
        least = np.sort(maxima, axis=1)[:, groups - k]
        which = np.flatnonzero(maxima >= least[:, None])
        if len(which) == b * k:  # no two maxima are equal there
            first = which + np.repeat(np.arange(0, b * (m - groups), m - groups), k)
            found = numbers.numpy().ravel().take(first[:, None] + np.arange(0, m, groups))
            return _last(torch.from_numpy(found.reshape(b, k * size)), k)
    return _last(numbers, k).clone()


def _last(numbers: Tensor, k: int) -> Tensor:
    """The k largest of each row, which is reordered."""
    m = numbers.shape[1]
    if m <= SORTED:
        numbers.numpy().sort(axis=1)
    else:
        numbers.numpy().partition(m - k, axis=1)
    return numbers[:, m - k :]


def _leave_out(bits: Tensor, at: Tensor, first: int) -> None:
    here = ((at >= first) & (at < first + bits.shape[1])).nonzero().squeeze(1)
    bits[here, at[here] - first] = -math.inf
