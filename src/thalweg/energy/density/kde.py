"""The exact noise-level energy of the data themselves: each stored row smeared by a Gaussian.

    U(x, t) = -log (1/N) sum_i N(x; x_i, t I)

is what a network trained by score matching on these rows would converge to with unlimited capacity. It is a
kernel density estimate (Parzen 1962) whose one number t is chosen by the likelihood of rows left out.
"""

import math
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.shape import check_rows

BLOCK = 64  # rows of a query at once: a block times 5,000 stored rows, 2.5 MB in float64, stays near the processor


class OfRows(nn.Module):
    """An energy made of stored `rows` (N, D) and a noise variance `t` in their squared units."""

    rows: Tensor

    def __init__(self, rows: Tensor, t: float):
        super().__init__()
        if rows.ndim != 2 or min(rows.shape) < 1:
            condition = f"must have the shape (N, D) with one row or more; it has {tuple(rows.shape)}"
            raise UserError(condition, argument="rows")
        check.positive(t=t)
        check.finite(t=t)
        self.register_buffer("rows", rows.detach().to(torch.float64), persistent=False)
        self.t = t

    @classmethod
    def example(cls) -> Self:
        """Five rows in two dimensions."""
        return cls(torch.tensor([[0.0, 0.0], [1.0, 0.5], [2.0, -1.0], [-1.0, 1.0], [0.5, 2.0]]), t=0.5)

    @property
    def shape(self) -> tuple[int]:
        """The shape of one position."""
        return (self.rows.shape[1],)


class KernelDensityEnergy(OfRows):
    """E(x) = -log (1/N) sum_i N(x; x_i, t I): N stored `rows` (N, D), noise variance `t` in squared units of x.

    Normalised, in nats. Costs N D multiplications and N exponentials a row.
    """

    def __init__(self, rows: Tensor, *, t: float = 1.0):
        super().__init__(rows, t)

    @property
    def constant(self) -> float:
        """What the energy adds to -logsumexp: log N + D log(2 pi t) / 2, nats."""
        return math.log(len(self.rows)) + 0.5 * self.rows.shape[1] * math.log(2 * math.pi * self.t)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats; infinity so far away that a squared distance overflows. UserError for rows of another shape."""
        check_rows(x, self.shape)
        rows = self.rows.to(x)
        parts = [self._energy(block, rows) for block in x.split(BLOCK)]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def _energy(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.constant - _log_sum(squared_distances(x, rows), self.t)


def _log_sum(squared: Tensor, t: float) -> Tensor:
    """log sum_j exp(-squared_j / 2t), (B, N) to (B,); the temporaries are reused where no gradient is wanted."""
    if squared.requires_grad:
        return torch.logsumexp(squared / (-2 * t), dim=1)
    least = squared.amin(1, keepdim=True).clamp_max(torch.finfo(squared.dtype).max)  # infinity less infinity is NaN
    scaled = (squared - least).mul_(-0.5 / t)
    return scaled.exp_().sum(1).log() - least.squeeze(1) / (2 * t)


def squared_distances(x: Float[Tensor, "b d"], y: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
    """|x_b - y_n|² by differences for few numbers, by one matrix product for many.

    The product loses about 1e-16 |x|² to cancellation.
    """
    if len(x) * len(y) * x.shape[1] <= 4096:
        return (x.unsqueeze(1) - y).square().sum(-1)
    square = x.square().sum(1, keepdim=True) + y.square().sum(1)
    product = torch.addmm(square, x, y.T, alpha=-2)
    return product.clamp_min(0) if product.requires_grad else product.clamp_min_(0)


def leave_one_out(rows: Float[Tensor, "n d"], t: list[float]) -> Float[Tensor, "t n"]:
    """U(x_i, t) of each row (N, D) without itself, for every noise variance in `t`; N >= 2.

    U_i = log(N - 1) + D log(2 pi t) / 2 - log sum_{j != i} exp(-|x_i - x_j|² / 2t).
    """
    n, d = rows.shape
    out = rows.new_empty(len(t), n)
    for start in range(0, n, BLOCK):
        squared = squared_distances(rows[start : start + BLOCK], rows)
        here = torch.arange(len(squared), device=rows.device)
        squared[here, start + here] = math.inf
        for k, one in enumerate(t):
            out[k, start : start + BLOCK] = -_log_sum(squared, one)
    for k, one in enumerate(t):
        out[k] += math.log(n - 1) + 0.5 * d * math.log(2 * math.pi * one)
    return out


def loo_bandwidth(rows: Float[Tensor, "n d"]) -> float:
    """The t with the highest leave-one-out likelihood on at most 800 of the rows; copies of a row leave with it.

    Without that rule tables with repeated rows have no optimum: t -> 0 makes each copy certain of the next.
    """
    step = max(1, math.ceil(len(rows) / 800))
    some = torch.unique(rows[::step], dim=0)
    if len(some) < 2:
        return 1.0
    squared = squared_distances(some, some).fill_diagonal_(math.inf)
    squared = squared.masked_fill(squared < 1e-10, math.inf)
    squared = squared[squared.isfinite().any(1)]
    if len(squared) == 0:
        return 1.0
    d = rows.shape[1]
    start = math.log(float(squared.min(1).values.median()) / d + 1e-12)
    grid = [math.exp(start - 2 + 0.6 * k) for k in range(11)]

    def energy(t: float) -> float:
        return float(-torch.logsumexp(squared / (-2 * t), dim=1).mean()) + 0.5 * d * math.log(t)

    return min(grid, key=energy)
