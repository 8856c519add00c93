"""Thresholds and false-alarm rates, q-values, from the energies of normal rows that the energy has not seen.

A row is flagged at rate a where its conformal p-value (`bundle.conformal`) is p <= a, which is E(x) > t, t the k-th
highest of u_1 … u_n, k = floor(a (n + 1)). For a normal row exchangeable with those n, P(p <= a) <= a.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from scipy import stats

from thalweg.bundle import conformal
from thalweg.core.errors import UserError

ROUNDING = 1e-9  # of an energy: what the order of summation may change


class Rate(NamedTuple):
    """The share of normal rows that a threshold flags: its mean over calibration sets, and an interval for this one."""

    expected: float
    low: float
    high: float


class LeaveOneOut(NamedTuple):
    """Fitted rows that calibrate by being left out of the fit, where the table has equal ones; (n,) each.

    Args:
        energies: The leave-one-out energy of row i, nats.
        equals: The energy of a new row that equals row i; `energies` where the table has no second such row.
        counts: Rows of the table that row i counts for.
    """

    energies: np.ndarray
    equals: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Energies of normal rows that the energy has not seen.

    Args:
        energies: Nats, in any order, (n,).
        left_out: Where they are leave-one-out energies of fitted rows. None: no fit saw these rows.
    """

    energies: np.ndarray
    left_out: LeaveOneOut | None = None

    def __post_init__(self):
        if self.energies.ndim != 1 or not len(self.energies) or not np.isfinite(self.energies).all():
            raise ValueError(f"energies of shape {self.energies.shape}: must be one or more finite numbers, (n,)")

    @classmethod
    def of_new_rows(cls, energies: np.ndarray) -> Self:
        """From the energies of rows that no fit saw. Equal rows tie with new ones, whatever the order of summation."""
        order = np.argsort(energies, kind="stable")
        gaps = np.diff(energies[order], prepend=energies[order[:1]])
        group = np.empty(len(energies), int)
        group[order] = np.cumsum(gaps > ROUNDING * np.maximum(np.abs(energies[order]), 1))
        return cls(_tied(energies, group))

    @classmethod
    def of_left_out(cls, left_out: LeaveOneOut, group: np.ndarray) -> Self:
        """From fitted rows that were left out, equal rows having one `group`.

        Equal rows get the largest of their energies, that of a new equal row included: they tie, and on the safe side.
        """
        repeated = np.bincount(group)[group] > 1
        largest = np.where(repeated, np.maximum(left_out.energies, left_out.equals), left_out.energies)
        return cls(_tied(largest, group), left_out)

    @cached_property
    def ranked(self) -> np.ndarray:
        """The energies, lowest first."""
        return np.sort(self.energies)

    def at_least(self, u: np.ndarray) -> np.ndarray:
        """#{i: u_i >= u}, (B,) whole numbers in 0 … n."""
        return conformal.at_least(self.ranked, u)

    def p_values(self, u: np.ndarray) -> np.ndarray:
        """p of energies u, (B,) in [1 / (n + 1), 1]; small = anomalous."""
        return conformal.p_values(self.ranked, u)

    def rank_of(self, rate: float) -> int:
        """k = floor(rate (n + 1)), the number of p-values at or below the rate; 0: none can be."""
        return int(np.floor(check_rate(rate) * (len(self.ranked) + 1) * (1 + 1e-12)))

    def threshold(self, rate: float) -> float:
        """t in nats: E(x) > t is p(x) <= rate. Infinite where n < 1 / rate - 1, as no row could then be flagged."""
        k = self.rank_of(rate)
        return float(self.ranked[-k]) if k else float("inf")

    def through(self, t: float) -> tuple["Calibration", float]:
        """(a calibration, a rate) for which E(x) > t is p(x) <= rate. The highest energy up to t is raised to t, which
        only makes p-values larger; where all are above t, the lowest is put there. Rows whose new equals have the
        energy t, and are not flagged, are put there too.
        """
        order = np.argsort(self.energies, kind="stable")
        energies, n, left_out = self.energies[order], len(self.energies), self.left_out
        if left_out is not None:
            own, equals, counts = (part[order] for part in left_out)
            lower = (np.abs(equals - t) <= 2 * ROUNDING * max(1.0, abs(t))) & (equals < energies)
            energies = np.where(lower, np.minimum(energies, t), energies)
            left_out = LeaveOneOut(np.where(lower, np.minimum(own, t), own), equals, counts)
        above = np.flatnonzero(energies > t)
        below = np.flatnonzero(energies <= t)
        if len(below):
            energies[below[energies[below].argmax()]] = t
        else:
            energies[0] = t
        return Calibration(energies, left_out), (min(len(above), n - 1) + 1) / (n + 1)

    def rate(self, rate: float, *, level: float = 0.95) -> Rate:
        """The false-alarm rate of `threshold(rate)`.

        Without ties at the threshold it has the law Beta(k, n + 1 - k) over calibration sets (Wilks 1941; Vovk 2012).
        With ties fewer rows are flagged. A calibration row would be if it exceeds the threshold that the n - 1 others
        set, which is to exceed the energy of rank k + 1: the share of these is unbiased for n - 1 rows. The interval is
        then that of Clopper & Pearson (1934) for the number above the threshold. Of rows left out their leave-one-out
        energies count, not the largest of their equals'.
        """
        k, n = self.rank_of(rate), len(self.ranked)
        if k == 0:
            return Rate(0.0, 0.0, 0.0)
        t, own = self.ranked[-k], self.energies if self.left_out is None else self.left_out.energies
        flagged = int((own > self.ranked[-k - 1]).sum()) if k < n else n
        expected = k / (n + 1) if flagged == k else flagged / n
        if flagged != k or (self.ranked == t).sum() > 1:
            return Rate(expected, *clopper_pearson(int((own > t).sum()), n, level=level))
        low, high = stats.beta.ppf([(1 - level) / 2, (1 + level) / 2], k, n + 1 - k)
        return Rate(expected, float(low), float(high))


def _tied(energies: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Energies that are the only one of their group as they are; the others the largest of it, and what rounding may
    change above that.
    """
    top = np.full(group.max() + 1, -np.inf)
    np.maximum.at(top, group, energies)
    raised = top + ROUNDING * np.maximum(np.abs(top), 1)
    return np.where(np.bincount(group)[group] > 1, raised[group], energies)


def clopper_pearson(alarms: int, rows: int, *, level: float = 0.99) -> tuple[float, float]:
    """An interval for a rate of which `alarms` in `rows` independent rows were counted (Clopper & Pearson 1934)."""
    found = stats.binomtest(alarms, rows).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def q_values(p: np.ndarray) -> np.ndarray:
    """The lowest false discovery rate at which each row of a batch is reported, (B,) (Benjamini & Hochberg 1995).

    q_(i) = min over j >= i of m p_(j) / j. Reporting q <= a keeps the expected share of false reports at or below a,
    conformal p-values of one calibration set included (Bates, Candès, Lei, Romano & Sesia 2023).
    """
    p = np.asarray(p, float)
    values, back, counts = np.unique(p, return_inverse=True, return_counts=True)
    return _step_up(values, counts)[back.reshape(p.shape)] if len(p) else p


def q_by_rank(counts: np.ndarray) -> np.ndarray:
    """The same for rows that are only counted: counts[k] have p = (1 + k) / len(counts), k = 0 … n. Returns q by k.

    The rows themselves need not be in memory, so the q-values of a stream are exact.
    """
    return _step_up(conformal.p_of_ranks(np.arange(len(counts)), len(counts) - 1), counts)


def _step_up(p: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """q at each of the rising p, of which there are so many."""
    below = np.cumsum(counts)
    ratio = np.where(below > 0, below[-1] * p / np.maximum(below, 1), np.inf)
    return np.minimum(np.minimum.accumulate(ratio[::-1])[::-1], 1.0)


def check_rate(rate: float, name: str = "false_alarm_rate") -> float:
    """The rate; UserError, with the name it was given by, unless it is a number in (0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate < 1:
        raise UserError("must be a number between 0 and 1, such as 0.01", argument=name, value=rate)
    return float(rate)
