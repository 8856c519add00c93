"""What an energy means in shares of normal data, and the promises that can be made of it.

    p(x) = (1 + #{i: u_i >= E(x)}) / (1 + n),    u_1 … u_n energies of normal rows that the energy has not seen.

For a normal row exchangeable with those n, P(p <= a) <= a at every a, ties or not: an equal energy counts as at least
as odd, which errs on the safe side
(Vovk, Gammerman & Shafer 2005; Laxhammar & Falkman 2015). A row is flagged at rate a
when p <= a, which is E(x) > t, t the k-th highest of u, k = floor(a (n + 1)).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import stats

from thalweg.core.errors import UserError


class Rate(NamedTuple):
    """The share of normal rows that a threshold flags: its mean over calibration sets, and an interval for this one."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Energies (n,) of normal rows that the energy has not seen, nats, in any order."""

    energies: np.ndarray

    def __post_init__(self):
        if self.energies.ndim != 1 or not len(self.energies) or not np.isfinite(self.energies).all():
            raise ValueError(f"energies of shape {self.energies.shape}: want one or more finite numbers, (n,)")

    @cached_property
    def ranked(self) -> np.ndarray:
        """The energies, lowest first."""
        return np.sort(self.energies)

    def at_least(self, u: np.ndarray) -> np.ndarray:
        """#{i: u_i >= u}, (B,) whole numbers in 0 … n."""
        return len(self.ranked) - np.searchsorted(self.ranked, u, side="left")

    def p_values(self, u: np.ndarray) -> np.ndarray:
        """p of energies u, (B,) in [1 / (n + 1), 1]; small = anomalous."""
        return (1 + self.at_least(u)) / (1 + len(self.ranked))

    def rank_of(self, rate: float) -> int:
        """k = floor(rate (n + 1)), the number of p-values at or below the rate; 0: none can be."""
        return int(np.floor(check_rate(rate) * (len(self.ranked) + 1) * (1 + 1e-12)))

    def threshold(self, rate: float) -> float:
        """t in nats: E(x) > t is p(x) <= rate. Infinite where n < 1 / rate - 1, as no row could then be flagged."""
        k = self.rank_of(rate)
        return float(self.ranked[-k]) if k else float("inf")

    def through(self, t: float) -> tuple["Calibration", float]:
        """(a calibration, a rate) for which E(x) > t is p(x) <= rate. The highest energy up to t is raised to t, which
        only makes p-values larger; where all are above t, the lowest is put there.
        """
        ranked, n = self.ranked.copy(), len(self.ranked)
        k = min(int((ranked > t).sum()), n - 1)
        ranked[n - k - 1] = t
        return Calibration(ranked), (k + 1) / (n + 1)

    def rate(self, rate: float, *, level: float = 0.95) -> Rate:
        """The false-alarm rate of `threshold(rate)`, which over calibration sets has the law Beta(k, n + 1 - k).

        Exact for energies without ties, an upper bound with them (Wilks 1941; Vovk 2012).
        """
        k, n = self.rank_of(rate), len(self.ranked)
        if k == 0:
            return Rate(0.0, 0.0, 0.0)
        low, high = stats.beta.ppf([(1 - level) / 2, (1 + level) / 2], k, n + 1 - k)
        return Rate(k / (n + 1), float(low), float(high))


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
    p = np.arange(1, len(counts) + 1) / len(counts)
    return _step_up(p, counts)


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
