"""What y may be in a conditional law p(y | x) = exp(-E(x, y)) / Z(x): a class, a binary vector or a continuous vector.

Z(x) is a sum over all y where they can be counted: `state_energies` evaluates E(x, y) at each of them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thalweg.core import check
from thalweg.core.errors import ROW, UserError
from thalweg.energy.base import Capability
from thalweg.energy.enumeration import state_chunks

JointEnergyFn = Callable[[Tensor, Tensor], Tensor]  # E(x, y): (B, *) and outcomes of B rows to (B,) nats
MOST_BINARY = 12  # units of a binary vector whose 2^num states are counted
MOST_PAIRS = 1 << 16  # pairs (x, y) that are evaluated together


@dataclass(frozen=True)
class OutcomeSet(ABC):
    """Abstract: the set that y is of.

    Args:
        num: Its number of classes, of binary units or of coordinates.
    """

    num: int

    def __post_init__(self):
        check.whole("num", self.num, 2 if isinstance(self, Classes) else 1)

    @abstractmethod
    def check(self, y: Tensor, n: int, where: str = "y") -> None:
        """UserError unless y is one outcome a row, of n rows."""

    def check_columns(self, columns: Float[Tensor, "b k"], where: str) -> None:
        """The same of the columns of rows that hold y."""
        self.check(columns.squeeze(1) if isinstance(self, Classes) else columns, len(columns), where)


@dataclass(frozen=True)
class Classes(OutcomeSet):
    """One of `num` classes: y (B,) whole numbers, 0 … num - 1; in a row of numbers one column holds it."""

    @property
    def columns(self) -> int:
        """The columns that y takes in a row of numbers."""
        return 1

    @property
    def enumerable(self) -> bool:
        """Whether all y can be counted."""
        return True

    def states(self, device: torch.device) -> Shaped[Tensor, " s"]:
        """All classes, in order."""
        return torch.arange(self.num, device=device)

    def of_columns(self, columns: Float[Tensor, "b 1"]) -> Shaped[Tensor, " b"]:
        """y of the column of a row that holds it."""
        return columns.squeeze(1).long()

    def check(self, y: Tensor, n: int, where: str = "y") -> None:
        """UserError unless y is one class a row, of n rows."""
        _check_shape(y, (n,), where)
        whole = y.round() == y if y.is_floating_point() else torch.ones_like(y, dtype=torch.bool)
        outside = ~(whole & (y >= 0) & (y < self.num))
        if bool(outside.any()):
            text = f"must be classes, whole numbers from 0 to {self.num - 1}, and one is {float(y[outside][0]):g}"
            raise UserError(text, argument=where, hint="number the classes from 0")


@dataclass(frozen=True)
class Binary(OutcomeSet):
    """A vector of `num` units that are 0 or 1: y (B, num) floats; enumerable up to 12 units, 4,096 vectors."""

    @property
    def columns(self) -> int:
        """The columns that y takes in a row of numbers."""
        return self.num

    @property
    def enumerable(self) -> bool:
        """Whether all y can be counted."""
        return self.num <= MOST_BINARY

    def states(self, device: torch.device) -> Float[Tensor, "s k"]:
        """The 2^num vectors, in the order of binary numbers, the first unit the highest digit."""
        if not self.enumerable:
            text = f"must be at most {MOST_BINARY} for the 2^num binary vectors to be counted"
            hint = "take conditional_log_prob_interval, or fewer labels"
            raise UserError(text, argument="num", value=self.num, hint=hint)
        return torch.cat(list(state_chunks(self.num, torch.empty(0, dtype=torch.float32, device=device))))

    def of_columns(self, columns: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """y of the columns of a row that hold it."""
        return columns

    def check(self, y: Tensor, n: int, where: str = "y") -> None:
        """UserError unless y is one vector of zeros and ones a row, of n rows."""
        _check_shape(y, (n, self.num), where)
        outside = (y != 0) & (y != 1)  # NaN too
        if bool(outside.any()):
            row, column = (int(i) for i in outside.nonzero()[0])
            text = f"must be 0 or 1, and column {column} (counted from 0) is {float(y[row, column]):g} in {ROW}"
            raise UserError(text, argument=where, row=row)


@dataclass(frozen=True)
class Continuous(OutcomeSet):
    """A vector of `num` real numbers: y (B, num)."""

    @property
    def columns(self) -> int:
        """The columns that y takes in a row of numbers."""
        return self.num

    @property
    def enumerable(self) -> bool:
        """Whether all y can be counted: they cannot."""
        return False

    def states(self, device: torch.device) -> Tensor:
        """UserError: there are too many."""
        hint = "take conditional_log_prob_interval"
        raise UserError("must be classes or binary vectors to be counted", argument="outcomes", value=self, hint=hint)

    def of_columns(self, columns: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """y of the columns of a row that hold it."""
        return columns

    def check(self, y: Tensor, n: int, where: str = "y") -> None:
        """UserError unless y is one finite vector a row, of n rows."""
        _check_shape(y, (n, self.num), where)
        if not bool(y.isfinite().all()):
            raise UserError("must be finite numbers", argument=where)


Outcomes = Classes | Binary | Continuous


@runtime_checkable
class Conditional(Protocol, metaclass=Capability):
    """E(x, y) of a row (x | y), whose last columns are y. The objective, the run and the bundle ask.

    Its call takes whole rows (B, D): -log p(y | x) where all y can be counted, else E(x, y).
    """

    @property
    def outcomes(self) -> Outcomes:
        """What y may be."""
        ...

    def joint(self, x: Tensor, y: Tensor, /) -> Tensor:
        """E(x, y), (B,) nats."""
        ...

    def split(self, rows: Tensor, /) -> tuple[Tensor, Tensor]:
        """(x, y) of rows (B, D)."""
        ...


class LinearGaussian(NamedTuple):
    """The law N(mean, scale scale') of y given x: means (B, K), a lower triangular matrix (K, K)."""

    mean: Tensor
    scale: Tensor

    def at(self, u: Float[Tensor, "*s b k"]) -> Float[Tensor, "*s b k"]:
        """y = mean + scale u, of standardised u."""
        return self.mean + u @ self.scale.T

    def log_det(self) -> Float[Tensor, ""]:
        """log |det scale|."""
        return self.scale.diagonal().log().sum()


@runtime_checkable
class HasGaussian(Protocol, metaclass=Capability):
    """Keeps a linear Gaussian law of y given x. Chains, annealing and candidates of a continuous y start from it."""

    def gaussian(self, x: Tensor, /) -> LinearGaussian:
        """The law of y at x (B, *)."""
        ...


def gaussian_of(energy: object, x: Tensor, outcomes: Continuous) -> LinearGaussian:
    """An energy's own law of y given x; N(0, I) where it has none."""
    if isinstance(energy, HasGaussian):
        return energy.gaussian(x)
    zeros = torch.zeros(len(x), outcomes.num, dtype=x.dtype, device=x.device)
    return LinearGaussian(zeros, torch.eye(outcomes.num, dtype=x.dtype, device=x.device))


def log_mixture(u: Float[Tensor, "*s k"], scales: Float[Tensor, " m"]) -> Float[Tensor, "*s"]:
    """log density of u in nats under the equal mixture of N(0, s² I) over the scales s."""
    k = u.shape[-1]
    terms = -0.5 * u.square().sum(-1, keepdim=True) / scales**2 - k * scales.log()
    return torch.logsumexp(terms, -1) - math.log(len(scales)) - 0.5 * k * math.log(2 * math.pi)


def state_energies(energy: JointEnergyFn, x: Float[Tensor, "b *d"], outcomes: Outcomes) -> Float[Tensor, "b s"]:
    """E(x, y) of all S outcomes y in the order of `outcomes.states`, (B, S) nats, with its gradient.

    Rows are taken in blocks of at most 65,536 pairs. Of several blocks the forward pass is repeated in the backward
    one, so that memory holds one of them. UserError where y cannot be counted.
    """
    states = outcomes.states(x.device)
    blocks = x.split(max(1, MOST_PAIRS // len(states)))
    if len(blocks) == 1 or not torch.is_grad_enabled():
        return torch.cat([_block(energy, part, states) for part in blocks])
    return torch.cat([checkpoint(_block, energy, part, states, use_reentrant=False) for part in blocks])  # pyright: ignore[reportArgumentType]


def _block(energy: JointEnergyFn, x: Tensor, states: Tensor) -> Tensor:
    """(B, S): each row's x beside each state."""
    b, s = len(x), len(states)
    pairs = x.repeat_interleave(s, 0), states.repeat(b, *[1] * (states.ndim - 1))
    y = pairs[1].to(x.dtype) if pairs[1].is_floating_point() else pairs[1]
    u = energy(pairs[0], y)
    if u.shape != (b * s,):
        raise UserError(f"must give one number a row; it gives {tuple(u.shape)} for {b * s}", argument="energy")
    return u.view(b, s)


def surprise(energy: JointEnergyFn, x: Float[Tensor, "b *d"], y: Tensor, outcomes: Outcomes) -> Float[Tensor, " b"]:
    """-log p(y | x) = E(x, y) + log sum_y' exp(-E(x, y')), (B,) nats, exact, with its gradient."""
    return energy(x, y) + torch.logsumexp(-state_energies(energy, x, outcomes), 1)


def _check_shape(y: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(y.shape) != shape:
        raise UserError(f"must be of shape {shape}; it is {tuple(y.shape)}", argument=where)
