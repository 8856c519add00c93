"""Checks on held-out rows whether choosing by a likelihood ratio brings draws nearer to data, and how strict it may be.

A badly known ratio ranks by its own errors: the draws of least energy are then further from the data than all draws. A
well known one is too strict where few draws are kept: all may be of the plainest kind. So choices are tried on draws
that the networks did not see (cross-fitting), and measured against unseen data by the energy distance (Székely & Rizzo
2013)

    D = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,

without bias, so that a random choice of any size has the D of all draws in the mean. How strict a choice is has two
parts: the share that is kept, 1/2, 1/4, 1/8 and so on, and the temperature of the choice (`selection.perturbed`). One
part of the rows chooses the temperature for each share; another says by how much the kept are then nearer, with a
standard error by the bootstrap. The shares are tried from the largest on, and the first at which two standard errors
show nothing ends the series: a stricter choice is not made.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.apps.rerank.selection import Variety, choose, perturbed
from thalweg.core.rng import generator

TEMPERATURES = (0.0, 0.25, 0.5, 1.0)  # in nats; 1 makes data of draws, colder goes further
SURE = 4.0  # standard errors that allow a choice colder than 1
REPEATS = 4  # choices at one temperature, whose distances are averaged
RESAMPLED = 100  # of the bootstrap
LEAST_KEPT = 8  # draws, and rows of data, of either part; fewer say nothing
ROWS = 3000  # of either kind and part that are compared


class HeldOut(NamedTuple):
    """Rows, and what the networks that were trained without their fold make of them.

    Args:
        real: Data in the space of the distance, (M, F).
        generated: Draws in the space of the distance, (N, F).
        real_fold: The fold of each row of data, (M,).
        fold: The fold of each draw, (N,).
        energies: Energy of each draw by the network that did not see it, (N,).
        features: What is alike among draws, (N, H); compared within a fold only.
    """

    real: Float[Tensor, "m f"]
    generated: Float[Tensor, "n f"]
    real_fold: Int[Tensor, " m"]
    fold: Int[Tensor, " n"]
    energies: Float[Tensor, " n"]
    features: Float[Tensor, "n h"]


class ShareCheck(NamedTuple):
    """What keeping a share of unseen draws did to their distance from unseen data.

    Args:
        share: Kept of all draws, in (0, 1/2].
        temperature: Of the choice, in nats.
        random: Energy distance of a random choice.
        nearer: By how much the distance of the kept draws is less.
        standard_error: Of `nearer`.
    """

    share: float
    temperature: float
    random: float
    nearer: float
    standard_error: float

    @property
    def helps(self) -> bool:
        """Whether the kept draws are nearer by more than two standard errors."""
        return self.nearer > 2 * self.standard_error


class Strictness(NamedTuple):
    """How a choice is made: its temperature in nats, and the share of the candidates that are considered."""

    temperature: float
    considered: float


def strictness(checks: Sequence[ShareCheck], share: float) -> Strictness | None:
    """How to keep a share of the candidates; None where no choice was shown to help.

    The temperature is that of the next stricter choice that was shown to help. Where there is none, so few candidates
    are considered that the choice among them is as strict as the strictest that was.
    """
    good = [check for check in checks if check.helps]
    if not good:
        return None
    stricter = [check for check in good if check.share <= share]
    used = max(stricter, key=lambda check: check.share) if stricter else min(good, key=lambda check: check.share)
    return Strictness(used.temperature, min(1.0, share / used.share))


def check_choices(held_out: HeldOut, *, seed: int = 0) -> dict[Variety, tuple[ShareCheck, ...]]:
    """By variety, a `ShareCheck` for each share from 1/2 down to the first that does not help or keeps too few rows.

    The first half of the folds chooses the temperatures, the others are for the check. Costs the distances of at most
    3,000 rows of either kind and some hundred choices.
    """
    num = int(held_out.fold.max()) + 1
    choosing, checking = (_Part(held_out, folds, seed) for folds in (range(num // 2), range(num // 2, num)))
    return {variety: _series(choosing, checking, variety) for variety in get_args(Variety)}


def _series(choosing: "_Part", checking: "_Part", variety: Variety) -> tuple[ShareCheck, ...]:
    found: list[ShareCheck] = []
    share, coldest = 0.5, 0
    while min(part.num_kept(share) for part in (choosing, checking)) >= LEAST_KEPT:
        coldest += _choose_temperature([choosing.nearer(share, t, variety) for t in TEMPERATURES[coldest:]])
        temperature = TEMPERATURES[coldest]
        nearer, error = _with_error(checking.nearer(share, temperature, variety))
        found.append(ShareCheck(share, temperature, checking.random, nearer, error))
        if not found[-1].helps:
            break
        share /= 2
    return tuple(found)


def _choose_temperature(gains: Sequence[Float[Tensor, " b"]]) -> int:
    """Which of some temperatures, the coldest first, whose choices are nearer by these gains.

    The coldest that is nearer than a random choice by four standard errors, and whose gain is within one standard error
    of the largest; where none is, the last, which goes no further than the data.
    """
    largest = max(gains, key=lambda gain: float(gain[0]))
    for i, gain in enumerate(gains):
        (nearer, error), (short, tolerance) = _with_error(gain), _with_error(largest - gain)
        if nearer > SURE * error and short <= tolerance:
            return i
    return len(gains) - 1


def _with_error(resampled: Float[Tensor, " b"]) -> tuple[float, float]:
    """(the value, its standard error) of a figure of the rows, first, and of their bootstrap samples."""
    return float(resampled[0]), float(resampled[1:].std())


class _Part:
    """The rows of some folds, their distances, and the weights of the bootstrap (Rubin 1981), the first all one."""

    def __init__(self, held_out: HeldOut, folds: Iterable[int], seed: int):
        wanted = torch.tensor(list(folds))
        self.seed, self.name = seed, ",".join(map(str, wanted.tolist()))
        draws, data = (self._rows(fold, wanted) for fold in (held_out.fold, held_out.real_fold))
        x, y = held_out.generated[draws].double(), held_out.real[data].double()
        self.energies, self.features = held_out.energies[draws], held_out.features[draws]
        self.folds = [(held_out.fold[draws] == k).nonzero().flatten() for k in wanted]
        self.within, self.across, self.of_data = torch.cdist(x, x), torch.cdist(x, y), torch.cdist(y, y)
        self.weights, self.data_weights = self._weights(len(x), "draws"), self._weights(len(y), "data")
        self.all = self._to_data(torch.arange(len(x)))
        self.random = float(self.all[0] - _mean_within(self.of_data, self.data_weights[:1])[0])

    def num_kept(self, share: float) -> int:
        """How many draws of all folds are kept, or rows of data there are, whichever is less."""
        return min(self.across.shape[1], sum(self._keep(rows, share) for rows in self.folds))

    def nearer(self, share: float, temperature: float, variety: Variety) -> Float[Tensor, " b"]:
        """D of all draws - D of the kept, of the rows and of each bootstrap sample."""
        repeats = REPEATS if temperature else 1
        kept = [self._to_data(self._chosen(share, temperature, variety, i)) for i in range(repeats)]
        return self.all - torch.stack(kept).mean(0)

    def _chosen(self, share: float, temperature: float, variety: Variety, repeat: int) -> Tensor:
        found = []
        for k, rows in enumerate(self.folds):
            u = perturbed(self.energies[rows], temperature, self.seed, "check", self.name, f"{share}", k, repeat)
            found.append(rows[choose(u, self.features[rows], self._keep(rows, share), variety)])
        return torch.cat(found)

    def _to_data(self, chosen: Tensor) -> Float[Tensor, " b"]:
        """2 E|X - Y| - E|X - X'| of some draws and the data, by each set of weights: D but for the data's own part."""
        w, v = self.weights[:, chosen], self.data_weights
        across = ((w @ self.across[chosen]) * v).sum(1) / (w.sum(1) * v.sum(1))
        return 2 * across - _mean_within(self.within[chosen][:, chosen], w)

    def _weights(self, n: int, side: str) -> Float[Tensor, "b n"]:
        draws = generator(self.seed, f"rerank-bootstrap/{self.name}/{side}")
        random = torch.empty(RESAMPLED, n, dtype=torch.float64).exponential_(generator=draws)
        return torch.cat([torch.ones(1, n, dtype=torch.float64), random])

    def _rows(self, fold: Tensor, wanted: Tensor) -> Tensor:
        rows = torch.isin(fold, wanted).nonzero().flatten()
        draws = generator(self.seed, f"rerank-rows/{self.name}")
        return rows[torch.randperm(len(rows), generator=draws)[:ROWS]].sort().values

    @staticmethod
    def _keep(rows: Tensor, share: float) -> int:
        return round(len(rows) * share)


def _mean_within(distances: Float[Tensor, "n n"], w: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """E|X - X'| by weighted pairs of two different rows."""
    pairs = (w.sum(1).square() - w.square().sum(1)).clamp(min=1e-300)
    return ((w @ distances) * w).sum(1) / pairs
