"""Bradley-Terry strengths of several sets from comparisons of two at a time (Bradley and Terry 1952)."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from scipy.stats import norm

from thalweg.core.errors import UserError

PRIOR = 0.5  # wins that each side of a pair gets beforehand, so that a set that wins always has a finite strength


class Strengths(NamedTuple):
    """Strengths in nats, mean 0, (k,), and the ends of their intervals, (k,) each."""

    strength: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bradley_terry(wins: np.ndarray, *, level: float = 0.95) -> Strengths:
    """Strengths s with P(i beats j) = 1 / (1 + exp(s_j - s_i)), by maximum likelihood.

    wins[i, j] counts how often i was preferred to j; a tie is half a win of each. Each pair that was compared gets half
    a win more on either side (Jeffreys' prior of one share), which shrinks strengths of few comparisons. The interval
    is the normal one, from the inverse of the observed information with the mean held at 0.

    Raises:
        UserError: wins is no square matrix of counts, or not all sets are joined by comparisons.
    """
    wins = np.asarray(wins, float)
    k = len(wins)
    if wins.shape != (k, k) or k < 2 or not (np.isfinite(wins).all() and (wins >= 0).all()):
        raise UserError("must be a square matrix of counts, of two sets or more", argument="wins")
    met = (wins + wins.T) > 0
    np.fill_diagonal(met, False)
    if (np.linalg.matrix_power(met + np.eye(k), k) == 0).any():
        raise UserError("must join all sets by comparisons", argument="wins")
    w = np.where(met, wins + PRIOR, 0.0)

    def loss(s: np.ndarray) -> tuple[float, np.ndarray]:
        gap = s[:, None] - s[None]
        gradient = w.T * expit(gap) - w * expit(-gap)
        return -(w * log_expit(gap)).sum() + 0.5 * s.mean() ** 2, gradient.sum(1) + s.mean() / k

    s = minimize(loss, np.zeros(k), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    s -= s.mean()
    p = expit(s[:, None] - s[None])
    information = (w + w.T) * p * (1 - p)
    hessian = np.diag(information.sum(1)) - information
    deviation = np.sqrt(np.diag(np.linalg.pinv(hessian, hermitian=True)).clip(min=0))
    reach = norm.ppf(0.5 + level / 2) * deviation
    return Strengths(s, s - reach, s + reach)
