"""Whether chains agree: rank-normalised R-hat, effective sample sizes and Monte Carlo errors, by ArviZ.

R-hat compares the variance between the halves of the chains with that within; it is taken of ranks, and of distances
from the median (folded), so that neither heavy tails nor chains of another spread hide (Vehtari et al. 2021). The
effective sample size (ESS) is how many independent draws would estimate as well: in bulk for the centre, in the tail
for the quantiles 0.05 and 0.95. Their limits, below, are those of that article.

ArviZ takes seconds to import, so it is imported when it is needed. Only its functions `rhat` and `ess` of an array
(chains, draws) are used, which all versions from 0.20 to 1.x have.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from torch import Tensor

from thalweg.core.errors import UserError

R_HAT, ESS = 1.01, 400  # chains agree below the one and from the other on
TAIL = (0.05, 0.95)


class Diagnosis(NamedTuple):
    """Of one quantity; NaN for all where one of its numbers is not finite.

    Of a quantity that is constant `r_hat` and `mcse_sd` are NaN, the sample sizes the number of draws and `mcse_mean`
    is 0, as in ArviZ.
    """

    r_hat: float
    ess_bulk: float
    ess_tail: float
    mcse_mean: float  # standard error of the mean, in units of the quantity
    mcse_sd: float  # and of the standard deviation

    @property
    def agrees(self) -> bool:
        """Whether chains agree on it."""
        return self.r_hat < R_HAT and min(self.ess_bulk, self.ess_tail) >= ESS


def diagnose(draws: Tensor | np.ndarray) -> list[Diagnosis]:
    """A row for each quantity of draws (chains, draws, *), in the order in which `reshape` lays them out.

    Axis 0 counts independent chains, two or more, axis 1 the draws of each in their order, four or more.
    """
    x = draws.detach().cpu().numpy() if isinstance(draws, Tensor) else np.asarray(draws)
    if x.ndim < 2 or x.shape[0] < 2 or x.shape[1] < 4:
        text = f"must be (chains, draws, …), two chains of four draws or more, not of shape {x.shape}"
        raise UserError(text, argument="draws")
    return [_diagnosis(column) for column in np.moveaxis(x.reshape(*x.shape[:2], -1).astype(np.float64), 2, 0)]


def _diagnosis(x: np.ndarray) -> Diagnosis:
    """Of one quantity, (chains, draws).

    The standard error of the mean is sd / sqrt(ESS of the mean). That of the deviation s follows from the error of the
    variance, which is the mean of c = (x - mean)²: sqrt(var(c) / ESS(c)) / (2 s).
    """
    if not np.isfinite(x).all():
        return Diagnosis(*[math.nan] * 5)
    with warnings.catch_warnings():  # it tells once a day that a newer version will be another one
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    x = np.ascontiguousarray(x)
    with np.errstate(invalid="ignore", divide="ignore"):  # of a constant quantity
        squares = (x - x.mean()) ** 2
        error = np.sqrt(squares.var() / float(arviz.ess(squares, method="mean"))) / (2 * np.sqrt(squares.mean()))
        return Diagnosis(
            float(arviz.rhat(x, method="rank")),
            float(arviz.ess(x, method="bulk")),
            float(arviz.ess(x, method="tail", prob=TAIL)),
            float(x.std(ddof=1) / math.sqrt(float(arviz.ess(x, method="mean")))),
            float(error),
        )
