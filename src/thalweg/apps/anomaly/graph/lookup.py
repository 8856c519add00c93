"""Places of numbers in sorted lists, by operations that every runtime of graphs has.

The place of x is the number of list entries below x, as `numpy.searchsorted` gives it. It is found in three rounds of
64 comparisons for a list of up to 262,143.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.apps.anomaly.surprise import LogPValue

FAN = 64  # comparisons a round


def hold(module: nn.Module, **values: object) -> None:
    """Keep constants as buffers of a module: numbers in float64, whole ones in int64.

    A plain number in an expression becomes a float32 constant of an ONNX graph; a buffer stays what it is.
    """
    for name, value in values.items():
        array = value.numpy() if isinstance(value, Tensor) else np.array(value)
        module.register_buffer(name, torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else float)))


class SortedLists(nn.Module):
    """D rising lists, laid one behind the other: places, and entries at places, of rows (B, D).

    Args:
        lists: One a column, of finite numbers.
    """

    entries: Tensor
    first: Tensor
    lengths: Tensor
    fan: Tensor

    def __init__(self, lists: Sequence[np.ndarray]):
        super().__init__()
        lengths = [len(part) for part in lists]
        first = np.cumsum([0, *(n + 1 for n in lengths[:-1])])
        entries = np.concatenate([[*part, np.inf] for part in lists])
        hold(self, entries=entries, first=first, lengths=lengths, fan=np.arange(FAN))
        num_levels = next(k for k in range(1, 64) if FAN**k > max(lengths))
        self.strides = [FAN**k for k in reversed(range(num_levels))]

    def places(self, x: Tensor) -> Tensor:
        """#{entries < x} by row and column, (B, D) int64; 0 for NaN."""
        place: Tensor | None = None
        for stride in self.strides:
            ends = stride * self.fan + (stride - 1)
            if place is not None:
                ends = place[..., None] + ends
            ends = torch.minimum(ends, self.lengths[:, None]) + self.first[:, None]
            below = torch.take(self.entries, ends) < x[..., None]
            found = stride * below.to(torch.int64).sum(-1)
            place = found if place is None else place + found
        assert place is not None
        return place

    def at(self, table: Tensor, place: Tensor) -> Tensor:
        """The entries at places of a table that is laid out like the lists, infinity included, (B, D)."""
        return torch.take(table, place + self.first)


class LogPValueGraph(nn.Module):
    """`LogPValue` of one energy: u (B,) to -log p (B,)."""

    at_value: Tensor
    between: Tensor
    tail: Tensor
    room: Tensor
    one: Tensor

    def __init__(self, scale: LogPValue):
        super().__init__()
        search, at, between, tail = scale._table
        self.lists = SortedLists([search.values[:-1]])
        hold(self, at_value=at, between=between, tail=tail, room=scale.room, one=1.0)

    def forward(self, u: Tensor) -> Tensor:
        """Values that u is but for rounding count as u, as in `LogPValue`."""
        u, values = u[:, None], self.lists.entries
        edge, excess, start = self.tail.unbind()
        place = self.lists.places(u)
        before = (place - 1).clamp_min(0)
        above, below = self.lists.at(values, place), self.lists.at(values, before)
        allowed = self.room * torch.maximum(u.abs(), self.one)
        high, low = above - u <= allowed, u - below <= allowed
        u = torch.where(high, above, torch.where(low, below, u))
        place = torch.where(low & ~high, before, place)
        equal = self.lists.at(values, place) == u
        inside = torch.where(equal, self.lists.at(self.at_value, place), self.lists.at(self.between, place))
        return torch.where(u > edge, (u - edge) / excess + start, inside).squeeze(1)


class PValueGraph(nn.Module):
    """p(u) = (1 + #{i: u_i >= u}) / (1 + n) of energies u (B,), as `bundle.conformal` has it."""

    def __init__(self, ranked: np.ndarray):
        super().__init__()
        self.lists, self.n = SortedLists([np.asarray(ranked, float)]), len(ranked)

    def forward(self, u: Tensor) -> Tensor:
        """(B,) in [1 / (n + 1), 1], float64."""
        below = self.lists.places(u[:, None]).squeeze(1)
        return (1 + self.n - below).double() / (self.lists.lengths + 1).double()
