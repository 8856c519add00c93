"""Energies of different kinds on one scale: how rare so high an energy is among normal rows.

    v(u) = -log P(U >= u),    U the energy of a normal row that no training saw.

v is 0 for the lowest energies and log(1/alpha) at the 1 - alpha quantile, whatever the energy's units. Beyond the
sample it grows as for an exponential tail (Balkema & de Haan 1974; Pickands 1975, shape 0), so that no two anomalies
tie. The sum of several v is Fisher's statistic (1932). `LogSurvival` is smooth, for images; `LogPValue` has exact
ranks, for tables.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.anomaly.bucket_search import BLOCK, BucketSearch
from thalweg.apps.anomaly.calibration import ROUNDING

LEVELS = (0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)  # of survival; the tail begins at the last


class LogSurvival(NamedTuple):
    """v(u) by lines between knots, with a slope everywhere.

    Args:
        u: Energies of the knots, nats, (K,).
        v: Their values, (K,). Below the first knot v goes on with the slope of the first line.
        scale: Beyond the last knot v grows by 1 every `scale` nats.
    """

    u: Tensor
    v: Tensor
    scale: Tensor

    @classmethod
    def of(cls, energies: Float[Tensor, " n"]) -> Self:
        """From the energies of normal rows. ValueError for fewer than two, or for such as are all the same."""
        e = energies.detach().double().sort().values
        if len(e) < 2 or not bool(e[-1] > e[0]):
            raise ValueError(f"energies: must be 2 or more distinct numbers, and are {len(e.unique())} in {len(e)}")
        levels = [level for level in LEVELS if level >= 1 / len(e)]
        u = torch.quantile(e, 1 - torch.tensor(levels, dtype=e.dtype))
        step = torch.finfo(torch.float32).eps * (e[-1] - e[0])
        u = u + step * torch.arange(len(u))  # ties: knots must rise
        beyond = e[e > u[-1]] - u[-1]
        scale = beyond.mean() if len(beyond) else e[-1] - e[0]
        return cls(u.float(), -torch.tensor(levels).log(), scale.float().clamp(min=float(step)))

    def to(self, device: torch.device) -> "LogSurvival":
        """The same for energies on a device."""
        return LogSurvival(*(part.to(device) for part in self))

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """v(u) in nats; differentiable but at the knots."""
        i = torch.searchsorted(self.u, u.detach().contiguous()).clamp(1, len(self.u) - 1)
        low, high = self.u[i - 1], self.u[i]
        inside = self.v[i - 1] + (u - low) / (high - low) * (self.v[i] - self.v[i - 1])
        return torch.where(u > self.u[-1], self.v[-1] + (u - self.u[-1]) / self.scale, inside)


@dataclass(frozen=True, kw_only=True)
class LogPValue:
    """-log of the p-value of an energy among known ones, nats.

    Mid-ranks up to the 80 % quantile, and an exponential tail with the mean excess beyond it, so that rows further out
    than every stored one keep their order.

    Args:
        known: Energies of normal rows, rising, (N,).
        room: Energies closer than this, relative to theirs from 1 on, count as equal.
    """

    known: np.ndarray
    room: float = ROUNDING

    @classmethod
    def of(cls, energies: np.ndarray, room: float | None = None) -> Self:
        """From energies (N,) in any order; with a `room`, where rows are equal, those closer than it made equal."""
        known = np.sort(energies)
        if room is None:
            return cls(known=known)
        close = np.diff(known) <= room * np.maximum(np.abs(known[1:]), 1)
        for i in np.flatnonzero(close & (np.diff(known) > 0)):
            end = np.searchsorted(known, known[i] + room * max(abs(known[i]), 1), side="right")
            known[i:end] = known[i]
        return cls(known=known, room=room)

    def __call__(self, u: np.ndarray) -> np.ndarray:
        search, at, between, (edge, excess, start) = self._table
        out = np.empty(len(u))
        for i in range(0, len(u), BLOCK):
            known, place, part = _placed(u[i : i + BLOCK], search, self.room)
            some = out[i : i + BLOCK]
            between.take(place, out=some, mode="clip")  # "raise" would copy `out`
            some[known] = at.take(place[known])
            beyond = np.flatnonzero(part > edge)
            some[beyond] = (part[beyond] - edge) / excess + start
        return out

    @cached_property
    def _table(self) -> tuple[BucketSearch, np.ndarray, np.ndarray, tuple[float, float, float]]:
        """Distinct energies and infinity, -log p at them and just below each, and the tail's three numbers."""
        n = len(self.known)
        k = min(max(n // 5, 1), n)
        edge = float(self.known[n - k - 1] if n > k else self.known[0])
        excess = max(float((self.known[n - k :] - edge).mean()), 1e-9 * max(abs(edge), 1.0))
        values, counts = np.unique(self.known, return_counts=True)
        right = np.cumsum(counts)
        left = right - counts
        at, between = (-np.log((n - rank / 2 + 0.5) / (n + 1)) for rank in (left + right, 2 * np.append(left, n)))
        tail = edge, excess, float(-np.log((k + 0.5) / (n + 1)))
        return BucketSearch(np.append(values, np.inf)), np.append(at, at[-1]), between, tail


def _placed(u: np.ndarray, search: BucketSearch, room: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Which are values, places, u): a value that u is but for rounding counts as u, lest copies not tie."""
    (place, above), allowed = search.with_values(u), room * np.maximum(np.abs(u), 1)
    high = above - u <= allowed
    known = np.flatnonzero(high | (u - search.values.take(place - 1, mode="clip") <= allowed))  # few, as a rule
    if len(known):
        place[known] -= ~high[known] & (place[known] > 0)
        u = u.copy()
        u[known] = search.values.take(place[known])
    return known, place, u
