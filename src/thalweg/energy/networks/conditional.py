"""Energies E(x, y) of rows (x | y) for the conditional law p(y | x) = exp(-E(x, y)) / Z(x).

The last columns of a row are y. x is standardised within, by figures that `fit` takes from training rows, and labels
are left as they are: such an energy is trained on rows in data units, without a transform. Each energy is a linear
model, which is what its baseline is too, plus a perceptron of x and y together.
"""

import math
from abc import abstractmethod
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.outcomes import Binary, Classes, Continuous, LinearGaussian, Outcomes, surprise
from thalweg.energy.shape import check_rows, check_shape

RIDGE = 1e-3  # of a standardised covariate's sum of squares, for columns that others add up to


class ConditionalEnergy(nn.Module):
    """Abstract: E(x, y) of rows (B, D) whose last `outcomes.columns` columns are y.

    A subclass has `joint(x, y)`, x in data units. It may use `standardised(x)`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int], outcomes: Outcomes):
        super().__init__()
        (dim,) = self.shape = check_shape(shape, "D")
        self.outcomes, self.num_covariates = outcomes, dim - outcomes.columns
        if self.num_covariates < 1:
            text = f"must be fewer than the {dim} columns of a row, which begins with the covariates"
            raise UserError(text, argument="num_targets", value=outcomes.columns)
        self.register_buffer("mean", torch.zeros(self.num_covariates))
        self.register_buffer("scale", torch.ones(self.num_covariates))

    @abstractmethod
    def joint(self, x: Float[Tensor, "b c"], y: Shaped[Tensor, "b *k"]) -> Float[Tensor, " b"]:
        """E(x, y) in nats."""

    def split(self, rows: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b c"], Shaped[Tensor, "b *k"]]:
        """(x, y) of rows."""
        check_rows(rows, self.shape)
        return rows[:, : self.num_covariates], self.outcomes.of_columns(rows[:, self.num_covariates :])

    def standardised(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """x with mean 0 and deviation 1 over the training rows."""
        check_rows(x, (self.num_covariates,))
        return (x - self.mean) / self.scale

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "n d"]) -> Self:
        """Take the mean and deviation of each covariate from training rows; a constant one gets deviation 1."""
        x, _ = self.split(rows)
        self.outcomes.check_columns(rows[:, self.num_covariates :], "targets")
        self.mean.copy_(x.double().mean(0))
        spread = x.double().std(0, correction=0)
        self.scale.copy_(spread.where(spread > 1e-7 * x.double().abs().amax(0), 1.0))
        return self

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Of rows (x | y): -log p(y | x) in nats where all y can be counted, else E(x, y)."""
        covariates, y = self.split(x)
        if self.outcomes.enumerable:
            return surprise(self.joint, covariates, y, self.outcomes)
        return self.joint(covariates, y)


class LabelEnergy(ConditionalEnergy):
    """E(x, y) = -e·(b + A x) - e·J e / 2 - f(x, e) of labels y: a conditional Ising model plus a perceptron f.

    e is y itself for a binary vector, and one-hot for a class. J is symmetric with a zero diagonal: J_jk > 0 where two
    labels come together more often than x tells. At J = f = 0 it is one logistic regression a label.

    Args:
        shape: (D,), covariates first.
        num_targets: Binary labels, in the last columns.
        num_classes: In place of them one column of a class, 0 … num_classes - 1. None: binary labels.
        width: Units of each hidden layer of f.
        depth: Hidden layers of f; 0: no f.
    """

    def __init__(
        self,
        *,
        shape: tuple[int] = (4,),
        num_targets: int = 1,
        num_classes: int | None = None,
        width: int = 32,
        depth: int = 1,
    ):
        if num_classes is not None and num_targets != 1:
            raise UserError("must be 1 where num_classes is given", argument="num_targets", value=num_targets)
        outcomes: Binary | Classes = Binary(check.whole("num_targets", num_targets, 1))
        super().__init__(
            shape, outcomes if num_classes is None else Classes(check.whole("num_classes", num_classes, 2))
        )
        k = self.outcomes.num
        self.linear = nn.Linear(self.num_covariates, k)
        self.coupling = nn.Parameter(torch.zeros(k, k))
        self.network = _perceptron(self.num_covariates + k, width, depth)

    @classmethod
    def example(cls) -> Self:
        """Two covariates and three labels."""
        return cls(shape=(5,), num_targets=3, width=4)

    @property
    def couplings(self) -> Float[Tensor, "k k"]:
        """J in nats."""
        return (self.coupling + self.coupling.T).fill_diagonal_(0) / 2

    def joint(self, x: Float[Tensor, "b c"], y: Shaped[Tensor, "b *k"]) -> Float[Tensor, " b"]:
        """E(x, y) in nats; y between 0 and 1 too."""
        z = self.standardised(x)
        e = F.one_hot(y, self.outcomes.num).to(z) if isinstance(self.outcomes, Classes) else y.to(z)
        score = (e * (self.linear(z) + e @ self.couplings / 2)).sum(1)
        return -score if self.network is None else -score - self.network(torch.cat([z, e], 1)).squeeze(1)


class RegressionEnergy(ConditionalEnergy):
    """E(x, y) = -log N(y; b + A x, S) - f(x, u), u = S^-1/2 (y - b - A x): a linear regression plus a perceptron f.

    `fit` sets b, A and S by least squares. At f = 0 it is that regression and Z(x) = 1. f grows at most linearly and
    the Gaussian's energy quadratically, so Z(x) is finite.

    Args:
        shape: (D,), covariates first.
        num_targets: Numbers y, in the last columns.
        width: Units of each hidden layer of f.
        depth: Hidden layers of f.
    """

    intercept: Tensor
    slope: Tensor
    residual: Tensor

    def __init__(self, *, shape: tuple[int] = (2,), num_targets: int = 1, width: int = 64, depth: int = 2):
        super().__init__(shape, Continuous(check.whole("num_targets", num_targets, 1)))
        check.count(depth=depth)
        self.register_buffer("intercept", torch.zeros(num_targets))
        self.register_buffer("slope", torch.zeros(self.num_covariates, num_targets))
        self.register_buffer("residual", torch.eye(num_targets))
        self.network = _perceptron(self.num_covariates + num_targets, width, depth)

    @classmethod
    def example(cls) -> Self:
        """One covariate and two targets."""
        return cls(shape=(3,), num_targets=2, width=5)

    @torch.no_grad()
    def fit(self, rows: Float[Tensor, "n d"]) -> Self:
        """Set the standardisation and the regression from training rows; UserError for a target that never varies."""
        super().fit(rows)
        x, y = self.split(rows)
        z, y = self.standardised(x).double(), y.double()
        gram = z.T @ z + RIDGE * len(z) * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        slope = torch.linalg.solve(gram, z.T @ (y - y.mean(0)))
        left = y - y.mean(0) - z @ slope
        covariance = left.T @ left / len(left)
        if bool((y.amax(0) == y.amin(0)).any()):
            raise UserError("must vary", argument="targets", hint="leave out targets that are constant")
        tiny = 1e-6 * y.var(0).diag()
        self.intercept.copy_(y.mean(0))
        self.slope.copy_(slope)
        self.residual.copy_(torch.linalg.cholesky(covariance + tiny))
        return self

    def gaussian(self, x: Float[Tensor, "b c"]) -> LinearGaussian:
        """The regression's law of y given x, N(b + A x, S)."""
        return LinearGaussian(self.intercept + self.standardised(x) @ self.slope, self.residual)

    def joint(self, x: Float[Tensor, "b c"], y: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """E(x, y) in nats, y in data units."""
        law = self.gaussian(x)
        u = torch.linalg.solve_triangular(law.scale, (y - law.mean).T, upper=False).T
        base = 0.5 * (u.square() + math.log(2 * math.pi)).sum(1) + law.log_det()
        assert self.network is not None  # its depth is 1 or more
        return base - self.network(torch.cat([self.standardised(x), u], 1)).squeeze(1)


def _perceptron(inputs: int, width: int, depth: int) -> nn.Sequential | None:
    check.count(width=width)
    check.whole("depth", depth, 0)
    if depth == 0:
        return None
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(inputs if i == 0 else width, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1, bias=False))
