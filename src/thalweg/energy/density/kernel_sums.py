"""Sums of Gaussian kernels over a list of rows, in float32 where that is precise enough and in float64 elsewhere.

    log2 sum_j 2^-|z - y_j|²,    and the mean of the k least |z - y_j|²

In float32 the product of (z, -|z|², 1) and (2 y, 1, -|y|²) gives -|z - y|², whose powers of two are summed directly.
Powers of e take three quarters of their time on an Intel Xeon, and 2.9 times as long on an AMD EPYC.
Terms are held at 2^-120: smaller ones would be subnormal, at twice the time. All blocks use one buffer, as fresh ones
take longer to come by than to fill. A row's sum does not depend on the rows beside it: the matrix product of four rows
or more has the same roundings row by row, so fewer rows are filled up to four, in float64 too.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.energy.density.subnormal import subnormals_as_zeros

ENTRIES = 131_072  # of a block of sums: half a MiB, so that list and block stay in the processor's cache
FINE = 262_144  # the same in float64
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

    `parts`: the list for products in float32, where it is `narrow`.

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
        self.width = self.parts[0].shape[1] if self.narrow else 0

    def fine(self, queries: Queries, at: Tensor, own: Tensor | None, k: int) -> Tensor:
        """(log2 of the sum, mean of the k least |z - y_j|²), (b, 2) in float64."""
        count = len(at)
        if 0 < count < TOGETHER:
            at = torch.cat([at, at[:1].expand(TOGETHER - count)])
        (y, norm), z, out = self._list(), queries.about(self.center, at), []
        own, k = None if own is None else self.left_out(own[at]), min(k, self.length - (own is not None))
        norms = z.square().sum(1)
        for first, last in blocks(len(z), max(16, FINE // len(y))):
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
        return torch.cat(out)[:count] if out else z.new_zeros(0, 2)

    def _list(self) -> tuple[Tensor, Tensor]:
        y = (self.rows if self.places is None else self.rows[self.places]) - self.center
        return y, y.square().sum(1)

    def left_out(self, own: Tensor) -> Tensor:
        """Where in the list rows of these indices stand, (b,); -1: nowhere."""
        if self.places is None:
            return own
        column = own.new_full((int(max(self.places.max(), own.max())) + 1,), -1)
        column[self.places] = torch.arange(len(self.places), device=own.device)
        return column[own]


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
    if queries.x.requires_grad or not groups:
        for part, at in groups:
            out[at] = part.fine(queries, at, own, k)
        return out
    with torch.inference_mode():
        order = torch.cat([at for _, at in groups])
        counts = [at.shape[0] for _, at in groups]
        sizes = [(part, count) for (part, _), count in zip(groups, counts, strict=True)]
        _put(out, order, _coarse(queries.lifted, order, sizes, own, k))
        again = queries.lifted[:, -2] < -BITS
        if faint or not all(part.narrow for part, _ in groups):
            again |= out[:, 0] < FAINT
        ends = torch.tensor(counts, device=out.device).cumsum(0)
        places = again[order].nonzero().squeeze(1)
        for i in torch.bucketize(places, ends, right=True).unique().tolist():
            part, at = groups[i]
            some = at[again[at]]
            out[some] = part.fine(queries, some, own, k)
    return out


class _Batch(NamedTuple):
    """Queries of lists that are equally long, one behind the other: the lists, and how many queries each has."""

    lists: list[KernelSum]
    counts: list[int]
    first: int
    last: int


def _coarse(
    lifted: Tensor, order: Tensor, groups: Sequence[tuple[KernelSum, int]], own: Tensor | None, k: int
) -> Tensor:
    """(log2 sum_j 2^-|z - y_j|², mean of the k least |z - y_j|²) in this order, (B, 2), by float32.

    Where a sum is not `narrow` it is 0: too faint for float32.
    """
    rows = lifted.new_zeros(len(order) + TOGETHER, lifted.shape[1])
    torch.index_select(lifted, 0, order, out=rows[: len(order)])
    total, near = rows.new_zeros(len(order)), rows.new_zeros(len(order))
    buffer = rows.new_empty(ENTRIES + TOGETHER * WIDTH)
    with subnormals_as_zeros(lifted.device) as flushed:
        for batch in _batches(groups):
            found: list[Tensor] = []
            first, last, part = batch.first, batch.last, batch.lists[0]
            sums, left_out = total[first:last], None if own is None else _left_out(batch, own[order[first:last]])
            most = min(k, part.length - (own is not None))
            for i in range(len(part.parts)):
                bits = _products(batch, i, rows, buffer)
                if left_out is not None:
                    _leave_out(bits, left_out, i * bits.shape[1])
                if most:
                    found.append(_largest(bits, most))
                if not flushed:
                    bits.clamp_min_(LEAST)
                if i == 0:
                    torch.sum(bits.exp2_(), 1, out=sums)
                else:
                    sums += bits.exp2_().sum(1)
            if most:
                largest = torch.cat(found, 1).topk(most, dim=1, sorted=False).values if len(found) > 1 else found[0]
                torch.mean(largest, 1, out=near[first:last])
    return torch.stack([total.double().log2(), -near.double().clamp_max(0)], dim=1)


def _batches(groups: Sequence[tuple[KernelSum, int]]) -> Iterator[_Batch]:
    """All queries but those whose lists are not `narrow`, as many together as `ENTRIES` terms allow."""
    lists: list[KernelSum] = []
    counts: list[int] = []
    first = end = 0
    for part, count in groups:
        left = count if part.narrow else 0
        end += count - left
        size = max(16, ENTRIES // part.width) if left else 0
        while left:
            some = min(left, size)
            fits = lists and lists[0].length == part.length and first + sum(counts) == end
            if not fits or end + some - first > size:
                if lists:
                    yield _Batch(lists, counts, first, first + sum(counts))
                lists, counts, first = [], [], end
            lists.append(part)
            counts.append(some)
            left, end = left - some, end + some
    if lists:
        yield _Batch(lists, counts, first, first + sum(counts))


def _left_out(batch: _Batch, own: Tensor) -> Tensor:
    parts = zip(batch.lists, own.split(batch.counts), strict=True)
    return torch.cat([part.left_out(some) for part, some in parts])


def _products(batch: _Batch, i: int, rows: Tensor, buffer: Tensor) -> Tensor:
    """-|z - y_j|² of the i-th parts of the lists, (b, M).

    Fewer than `TOGETHER` queries are multiplied with the ones behind.
    """
    lists, counts, first, last = batch
    width = lists[0].width
    out, z = buffer[: (last - first) * width].view(-1, width), rows[first:last]
    if len(lists) == 1 and last - first >= TOGETHER:
        return torch.mm(z, lists[0].parts[i], out=out)
    at = first
    for part, some, to, count in zip(lists, z.split(counts), out.split(counts), counts, strict=True):
        if count >= TOGETHER:
            torch.mm(some, part.parts[i], out=to)
        else:
            to.copy_(torch.mm(rows[at : at + TOGETHER], part.parts[i])[:count])
        at += count
    return out


def _put(out: Tensor, order: Tensor, values: Tensor) -> None:
    """out[order] = values; on the CPU by NumPy, in less time."""
    if out.device.type == "cpu":
        out.numpy()[order.numpy()] = values.numpy()
    else:
        out[order] = values


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


def blocks(count: int, size: int) -> list[tuple[int, int]]:
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
            first = which.reshape(b, k, 1) + (m - groups) * np.arange(b)[:, None, None]
            found = numbers.numpy().ravel().take(first + np.arange(0, m, groups))
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
