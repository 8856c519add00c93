"""Which rows are trained on and which are held out, by the seed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.data.permutation import Permutation
from thalweg.data.stored_rows import HELD_OUT_NUMBERS, HELD_OUT_ROWS, ListedRows, RowsExcept, StoredRows, Subset


class SplitRows(NamedTuple):
    """The parts of a set. `sizes`: in words."""

    train: Tensor | StoredRows
    held_out: Tensor
    train_labels: Tensor | None
    held_out_labels: Tensor | None
    sizes: str


def split_rows(n: int, labels: Tensor | None, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Shuffled row numbers to train on and to hold out, the same share of each class; O(n log n) for any number."""
    order = torch.randperm(n, generator=generator(seed, "split"))
    count = num_held_out(n, share)
    if labels is None:
        return order[count:], order[:count]
    place = torch.empty(n, dtype=torch.float64)  # a row's quantile within its class, in shuffled order
    _, classes, sizes = labels[order].unique(return_inverse=True, return_counts=True)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # of a row's class, once the rows are sorted by class
    rank = torch.arange(n) - first
    place[classes.argsort(stable=True)] = (rank.double() + 0.5) / sizes.repeat_interleave(sizes)
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[place.argsort(stable=True)[:count]] = True
    return order[~chosen], order[chosen]


def num_held_out(n: int, share: float) -> int:
    """How many of n rows a share is: at least one, and not all."""
    return min(max(1, round(n * share)), n - 1)


def split_tensor(x: Tensor, labels: Tensor | None, share: float, seed: int, limit: int | None) -> SplitRows:
    """The parts of rows in memory, both shuffled."""
    train, rest = split_rows(len(x), labels, share, seed)
    train = train[:limit]
    own, others = (None if labels is None else labels[part] for part in (train, rest))
    return SplitRows(x[train], x[rest], own, others, f"{len(train):,} to train on, {len(rest):,} held out")


def split_stored(x: StoredRows, labels: Tensor | None, share: float, seed: int, limit: int | None) -> SplitRows:
    """The parts of rows that stay where they are stored, of which the held-out ones are read now.

    Without labels the memory that this takes does not grow with the number of rows. Held-out rows are shuffled;
    training rows keep the order in which they are stored, and `StoredRows.order` shuffles each epoch.
    """
    wanted = num_held_out(len(x), share)
    count = max(2, min(wanted, HELD_OUT_ROWS, HELD_OUT_NUMBERS // max(1, math.prod(x.shape[1:]))))
    if labels is None:
        order = Permutation(len(x), generator(seed, "split"))
        rest, some = order[:count], order[count : count + (limit or 0)]
    else:
        shuffled, rest = split_rows(len(x), labels, count / len(x), seed)
        some = shuffled[: limit or 0]
    whole = limit is None or limit >= len(x) - count
    rows = RowsExcept(len(x), rest.sort().values) if whole else ListedRows(some.sort().values)
    bound = f" (at most {HELD_OUT_ROWS:,} rows, and {HELD_OUT_NUMBERS:,} numbers, are)" if count < wanted else ""
    return SplitRows(
        Subset(x, rows),
        x[rest],
        None if labels is None else labels[rows[torch.arange(len(rows))]],
        None if labels is None else labels[rest],
        f"{len(rows):,} to train on, read while it trains, {len(rest):,} held out{bound}",
    )
