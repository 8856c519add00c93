"""Linear observations of x, in a form that samplers can use: orthonormal directions, each known up to some noise.

    b = A x + s n,   A = L diag(S) V'   =>   (L' b)_i / S_i = <v_i, x> + (s / S_i) n_i

Masks, blurs and reductions in size are of this kind: each gives some projections <v_i, x>, each with its own noise
(Kawar et al. 2021). For a Gaussian x both the posterior mean and exact draws are then matrix products.
"""

from typing import NamedTuple, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.energy.base import EnergyFn, energy_and_grad

RIDGE = 1e-6  # relative; keeps the factor of an exact observation of nearly constant pixels
LEAST = 1e-3  # a direction that A shrinks by more than this, relative to its largest, counts as not observed
TOLERANCE, ITERATIONS = 1e-4, 200  # of conjugate gradients: the relative residual at which they stop, and at most


class CovarianceProduct(Protocol):
    """A covariance C too large to be written out: its products. `LinearObservation.update` asks."""

    @property
    def scale(self) -> float:
        """tr C / D."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """C x of each row, (B, D)."""
        ...

    def solve(self, x: Tensor, noise: float, /) -> Tensor:
        """(C + noise I)^-1 x of each row, (B, D)."""
        ...


class LinearObservation(NamedTuple):
    """Known projections <v_i, x> of x on orthonormal directions, up to Gaussian noise, from a linear operator A.

    Attributes:
        basis: The directions v_i as columns, (D, m); None where they are single pixels.
        noise: The standard deviation of each projection, (m,).
        inverse: The matrix from the measurements b to the projections, (m, k); None where they are the same.
        pixels: The index of each direction where the directions are single pixels, (m,); otherwise None.
        size: D.
    """

    basis: Tensor | None
    noise: Tensor
    inverse: Tensor | None
    pixels: Tensor | None
    size: int

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "k d"], noise: float) -> Self:
        """From A and the standard deviation s of the noise on the measurements."""
        ones = matrix == 1
        if bool(((matrix == 0) | ones).all() and (ones.sum(1) == 1).all() and (ones.sum(0) <= 1).all()):
            return cls.from_pixels(ones.int().argmax(1), matrix.shape[1], matrix.new_full((len(matrix),), noise))
        left, size, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        kept = size > LEAST * size.max()
        left, size, right = left[:, kept], size[kept], right[kept]
        inverse = left.T / size[:, None]
        return cls(right.T.to(matrix), (noise / size).to(matrix), inverse.to(matrix), None, matrix.shape[1])

    @classmethod
    def from_pixels(cls, pixels: Int[Tensor, " m"], size: int, noise: Float[Tensor, " m"]) -> Self:
        """Of single pixels of D = `size`, each with a standard deviation of its noise: no matrix is made."""
        return cls(None, noise, None, pixels, size)

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        basis, inverse, pixels = (None if a is None else a.to(device) for a in (self.basis, self.inverse, self.pixels))
        return type(self)(basis, self.noise.to(device), inverse, pixels, self.size)

    def select(self, which: Bool[Tensor, " m"]) -> Self:
        """Some of the directions; without a way from measurements, which are not theirs alone."""
        basis, pixels = (None if a is None else a[..., which] for a in (self.basis, self.pixels))
        return type(self)(basis, self.noise[which], None, pixels, self.size)

    def project(self, measurements: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """<v_i, x> + noise, from the measurements of each row."""
        return measurements if self.inverse is None else measurements @ self.inverse.T

    def projections_of(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """<v_i, x> of each row, in the precision of x."""
        if self.basis is not None:
            return x @ self.basis.to(x.dtype)
        return x[..., self.pixels]

    def spread(self, values: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """sum_i values_i v_i of each row."""
        if self.basis is not None:
            return values @ self.basis.to(values.dtype).T
        found = values.new_zeros(*values.shape[:-1], self.size)
        found[..., self.pixels] = values
        return found

    def set_projections(self, x: Float[Tensor, "b d"], values: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """x with <v_i, x> replaced by these values."""
        return x + self.spread(values - self.projections_of(x))

    def update(
        self, covariance: Float[Tensor, "d d"] | CovarianceProduct, residual: Float[Tensor, "b m"]
    ) -> Float[Tensor, "b d"]:
        """The change of a Gaussian's mean by an observation: C V (V' C V + diag(noise²))^-1 residual.

        `residual` is the projections minus V' mean. A matrix C costs one Cholesky factor of m x m numbers, in float64;
        products with C cost some tens of them, by conjugate gradients.
        """
        if not len(self.noise):
            return residual.new_zeros(len(residual), self.size)
        if not isinstance(covariance, Tensor):
            return covariance(self.spread(self._solved(covariance, residual)))
        if self.basis is None:
            across, inner = covariance[:, self.pixels], covariance[self.pixels][:, self.pixels].double()
        else:
            across = covariance @ self.basis
            inner = (self.basis.T @ across).double()
        ridge = self.noise.double().square() + RIDGE * inner.diagonal().mean()
        factor = torch.linalg.cholesky(0.5 * (inner + inner.T) + ridge.diag())
        return torch.cholesky_solve(residual.double().T, factor).T.to(residual) @ across.T

    def _solved(self, covariance: CovarianceProduct, residual: Tensor) -> Tensor:
        """(V' C V + diag(noise²))^-1 residual by preconditioned conjugate gradients (Hestenes & Stiefel 1952).

        The preconditioner V' (C + noise² I)^-1 V is the inverse itself but for the rim of what is observed.
        """
        ridge = self.noise.square() + RIDGE * covariance.scale
        usual = float(ridge.mean())
        goal = TOLERANCE * residual.norm(dim=1)
        a, r = torch.zeros_like(residual), residual
        direction, weight = torch.zeros_like(residual), residual.new_ones(len(residual))
        for _ in range(ITERATIONS):
            if bool((r.norm(dim=1) <= goal).all()):
                break
            steered = self.projections_of(covariance.solve(self.spread(r), usual))
            new = (r * steered).sum(1)
            direction = steered + _ratio(new, weight) * direction
            image = self.projections_of(covariance(self.spread(direction))) + ridge * direction
            step = _ratio(new, (direction * image).sum(1))
            a, r, weight = a + step * direction, r - step * image, new
        return a


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b as a column, zero where b is not above zero: of a row that is solved."""
    return torch.where(b > 0, a / b, 0.0)[:, None]


class PosteriorEnergy:
    """The energy of y = x + sqrt(t) e given a linear observation of x: U(y, t) - log p(observation | y).

    The noise e may contain the observation's own noise. So a direction with noise_i² > t gives
    <v_i, y> = projection_i + sqrt(noise_i² - t) n, which is exact whatever U is. A direction of less noise is fixed:
    <v_i, y> keeps its value in `fixed`, which should be projection_i + sqrt(t - noise_i²) n with n drawn once. A fixed
    direction counts as an observation of noise sqrt(t), an error that vanishes with t. At t = 0 both are exact.

    Args:
        energy: U(., t), (B, *shape) to (B,) nats.
        t: The noise variance.
        observation: Which projections of x are known.
        projections: Their values, (B, m).
        fixed: Positions (B, *shape) whose projections on the fixed directions are kept.
    """

    def __init__(self, energy: EnergyFn, t: float, observation: LinearObservation, projections: Tensor, fixed: Tensor):
        hard = observation.noise.square() <= t
        self.energy, self.shape = energy, fixed.shape[1:]
        self.hard, self.soft = observation.select(hard), observation.select(~hard)
        self.projections = projections[:, ~hard]
        self.precision = 1 / (observation.noise[~hard].square() - t)
        flat = fixed.flatten(1)
        self.fixed = self.hard.spread(self.hard.projections_of(flat))

    @classmethod
    def example(cls) -> Self:
        """A quadratic energy in three dimensions, of which two projections are known, one of them exactly."""
        matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
        linear = LinearObservation.from_matrix(matrix, 0.5)._replace(noise=torch.tensor([0.0, 0.5]))
        return cls(lambda y: 0.5 * y.square().sum(1), 0.1, linear, torch.tensor([[0.3, -0.2]]), torch.ones(1, 3))

    def restore(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """y with the fixed directions at their values."""
        flat = y.flatten(1)
        return (flat - self.hard.spread(self.hard.projections_of(flat)) + self.fixed).reshape(y.shape)

    def value_and_grad(self, y: Float[Tensor, "b *d"]) -> tuple[Tensor, Tensor]:
        """(E, dE/dy); the gradient is zero along the fixed directions."""
        y = self.restore(y)
        u, g = energy_and_grad(self.energy, y)
        residual = self.projections - self.soft.projections_of(y.flatten(1))
        g = g.flatten(1) - self.soft.spread(residual * self.precision)
        g = g - self.hard.spread(self.hard.projections_of(g))
        return u + 0.5 * (residual.square() * self.precision).sum(1), g.reshape(y.shape)

    def __call__(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats, up to a constant."""
        y = self.restore(y)
        residual = self.projections - self.soft.projections_of(y.flatten(1))
        return self.energy(y) + 0.5 * (residual.square() * self.precision).sum(1)
