"""log Z by importance sampling from a law that is known whole: for few dimensions, where such a law is close."""

import math

from jaxtyping import Float
from torch import Tensor

from thalweg.normaliser.ais import effective_size, log_mean
from thalweg.normaliser.bennett import ERRORS
from thalweg.normaliser.estimate import FEW, LogZ


def importance_log_z(energy: Float[Tensor, " n"], law: Float[Tensor, " n"]) -> LogZ:
    """log of the mean of exp(law - energy), with three standard errors on either side.

    A region where the law has no mass is missed, and no weight tells of it.

    Args:
        energy: E(x) in nats, at draws x of the law.
        law: The law's own energy, -log q(x), in nats.
    """
    log_w = (law - energy).double()
    n, ess, estimate = len(log_w), effective_size(log_w), log_mean(log_w)
    relative = (log_w - estimate).exp()
    error = float(relative.std()) / math.sqrt(n)
    high = estimate + math.log1p(ERRORS * error)
    low = estimate + math.log1p(-ERRORS * error) if ERRORS * error < 1 else -math.inf
    warning = f"only {ess:.1f} of {n} draws carry the weight: the interval may not hold" if ess < FEW * n else None
    return LogZ(estimate, low, high, ess, forward=estimate, num_chains=n, warning=warning)
