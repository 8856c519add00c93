"""Forward and reverse weights to one number with an interval: Bennett's acceptance ratio, bootstrapped over chains.

With f = log w of the forward pass and r = -log w of the reverse pass, both of Z_K / Z_0, the ratio's logarithm c solves

    sum_F 1 / (1 + (n_F / n_R) exp(c - f)) = sum_R 1 / (1 + (n_R / n_F) exp(r - c)),

of all ways to weigh the two the one of least variance (Bennett 1976), and the maximum of the likelihood (Shirts et al.
2003).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

NUM_RESAMPLES = 200
ERRORS = 3.0  # standard errors on either side
_HALVINGS = 45
_LARGEST = 100.0  # variance, that exp of it is a number


class Sandwich(NamedTuple):
    """log Z_K / Z_0 in nats, by each pass and by both, with standard errors and the interval of them all."""

    estimate: float  # by both passes
    error: float
    lower: float  # by the forward pass: too low on average
    lower_error: float
    upper: float  # by the reverse pass: too high on average, where it starts from the law
    upper_error: float
    unseen: float = 0.0  # nats by which the reverse pass may be too low beyond its standard errors

    @property
    def low(self) -> float:
        """The lowest of the three estimates, each less three standard errors."""
        return min(self.estimate - ERRORS * self.error, self.lower - ERRORS * self.lower_error, self.upper)

    @property
    def high(self) -> float:
        """The highest of the three estimates, each plus three standard errors; the reverse one, `unseen` if more."""
        upper = self.upper + max(ERRORS * self.upper_error, self.unseen)
        return max(self.estimate + ERRORS * self.error, upper, self.lower)


def sandwich(
    forward: Float[Tensor, " n"], reverse: Float[Tensor, " m"], ancestors: Tensor, generator: Generator
) -> Sandwich:
    """Estimates and standard errors from log w of the two passes.

    Chains are drawn again with replacement, 200 times. `ancestors` (m,) are the numbers of what each reverse chain
    started from: chains of one ancestor are drawn together. From 0 to n - 1 they are forward chains; others, from n
    on, are draws of the caller's. Where all are forward chains, the reverse pass shares what those have missed, and
    `unseen` is its width by the variance of log w.
    """
    n, num = len(forward), int(max(len(forward), int(ancestors.max()) + 1))
    of_forward = _counts(n, generator, forward)
    extra = num - n
    of_ancestors = torch.cat([of_forward, _counts(extra, generator, forward)], 1) if extra else of_forward
    of_reverse = of_ancestors[:, ancestors]
    log_f, log_r = of_forward.log(), of_reverse.log()
    lower = torch.logsumexp(forward + log_f, 1) - torch.logsumexp(log_f, 1)
    upper = torch.logsumexp(log_r, 1) - torch.logsumexp(reverse + log_r, 1)
    both = bennett(forward, -reverse, of_forward, of_reverse)
    ends = float(lower[0]), _deviation(lower), float(upper[0]), _deviation(upper)
    return Sandwich(float(both[0]), _deviation(both), *ends, 0.0 if extra else unseen(reverse))


def unseen(log_w: Float[Tensor, " m"]) -> float:
    """Three standard errors of the mean of w if log w is normal, at most log mean w - mean log w, in nats.

    The mean of w has the relative error sqrt((exp(v) - 1) / m), v the variance of log w; a bootstrap sees only the
    large weights that were drawn, and none of those that are rarer. -mean log w bounds log Z from above with hardly an
    error of its own, as long as the chains start from the law (Grosse et al. 2015).
    """
    log_w = log_w[log_w.isfinite()]
    if len(log_w) < 2:
        return 0.0
    error = math.sqrt(math.expm1(min(float(log_w.var()), _LARGEST)) / len(log_w))
    return min(ERRORS * error, float(torch.logsumexp(log_w, 0) - math.log(len(log_w)) - log_w.mean()))


def bennett(
    f: Float[Tensor, " n"], r: Float[Tensor, " m"], of_f: Float[Tensor, "b n"], of_r: Float[Tensor, "b m"]
) -> Float[Tensor, " b"]:
    """c for each row of multiplicities of the chains, by bisection."""
    ends = torch.cat([f, r])
    ends = ends[ends.isfinite()]
    if not len(ends):
        return torch.full((len(of_f),), -torch.inf, dtype=f.dtype, device=f.device)
    low, high = (end.expand(len(of_f)) for end in (ends.min() - 1, ends.max() + 1))
    odds = (of_f.sum(1) / of_r.sum(1)).log()[:, None]
    for _ in range(_HALVINGS):
        c = 0.5 * (low + high)
        left = (of_f * torch.sigmoid(f - c[:, None] - odds)).sum(1)
        right = (of_r * torch.sigmoid(c[:, None] + odds - r)).sum(1)
        below = left > right  # the left side falls with c
        low, high = torch.where(below, c, low), torch.where(below, high, c)
    return 0.5 * (low + high)


def _counts(n: int, generator: Generator, like: Tensor) -> Tensor:
    """How often each of n chains is drawn, (1 + resamples, n): once each in the first row."""
    drawn = torch.randint(n, (NUM_RESAMPLES, n), generator=generator, device=like.device)
    counts = like.new_zeros(NUM_RESAMPLES, n).scatter_add_(1, drawn, like.new_ones(()).expand(NUM_RESAMPLES, n))
    return torch.cat([like.new_ones(1, n), counts])


def _deviation(resampled: Tensor) -> float:
    """The standard deviation of all rows but the first; infinite where some are."""
    deviation = float(resampled[1:].std())
    return deviation if math.isfinite(deviation) else math.inf
