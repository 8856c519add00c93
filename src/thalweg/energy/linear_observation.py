"""Linear observations of x, in a form that samplers can use: orthonormal directions, each known up to some noise.

    b = A x + s n,   A = L diag(S) V'   =>   (L' b)_i / S_i = <v_i, x> + (s / S_i) n_i

Masks, blurs and reductions in size are of this kind: each gives some projections <v_i, x>, each with its own noise
(Kawar et al. 2021). For a Gaussian x both the posterior mean and exact draws are then matrix products.
"""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.energy.base import EnergyFn, energy_and_grad

RIDGE = 1e-6  # relative; keeps the factor of an exact observation of nearly constant pixels
LEAST = 1e-3  # a direction that A shrinks by more than this, relative to its largest, counts as not observed


class LinearObservation(NamedTuple):
    """Known projections <v_i, x> of x on orthonormal directions, up to Gaussian noise, from a linear operator A.

    Attributes:
        basis: The directions v_i as columns, (D, m).
        noise: The standard deviation of each projection, (m,).
        inverse: The matrix from the measurements b to the projections, (m, k).
        pixels: The index of each direction where the directions are single pixels, (m,); otherwise None.
    """

    basis: Tensor
    noise: Tensor
    inverse: Tensor
    pixels: Tensor | None = None

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "k d"], noise: float) -> Self:
        """From A and the standard deviation s of the noise on the measurements."""
        ones = matrix == 1
        if bool(((matrix == 0) | ones).all() and (ones.sum(1) == 1).all() and (ones.sum(0) <= 1).all()):
            noises, identity = matrix.new_full((len(matrix),), noise), torch.eye(len(matrix)).to(matrix)
            return cls(matrix.T.contiguous(), noises, identity, ones.int().argmax(1))
        left, size, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        kept = size > LEAST * size.max()
        left, size, right = left[:, kept], size[kept], right[kept]
        inverse = left.T / size[:, None]
        return cls(right.T.to(matrix), (noise / size).to(matrix), inverse.to(matrix))

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        return type(self)(self.basis.to(device), self.noise.to(device), self.inverse.to(device), pixels)

    def project(self, measurements: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """<v_i, x> + noise, from the measurements of each row."""
        return measurements @ self.inverse.T

    def set_projections(self, x: Float[Tensor, "b d"], values: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """x with <v_i, x> replaced by these values."""
        return x + (values - x @ self.basis) @ self.basis.T

    def update(self, covariance: Float[Tensor, "d d"], residual: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """The change of a Gaussian's mean by an observation: C V (V' C V + diag(noise²))^-1 residual.

        `residual` is the projections minus V' mean. Costs one Cholesky factor of m x m numbers, in float64.
        """
        if self.pixels is not None:
            across, inner = covariance[:, self.pixels], covariance[self.pixels][:, self.pixels].double()
        else:
            across = covariance @ self.basis
            inner = (self.basis.T @ across).double()
        if not len(inner):
            return residual.new_zeros(len(residual), len(covariance))
        ridge = self.noise.double().square() + RIDGE * inner.diagonal().mean()
        factor = torch.linalg.cholesky(0.5 * (inner + inner.T) + ridge.diag())
        return torch.cholesky_solve(residual.double().T, factor).T.to(residual) @ across.T


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
        self.hard, self.soft = observation.basis[:, hard], observation.basis[:, ~hard]
        self.projections = projections[:, ~hard]
        self.precision = 1 / (observation.noise[~hard].square() - t)
        flat = fixed.flatten(1)
        self.fixed = (flat @ self.hard) @ self.hard.T

    @classmethod
    def example(cls) -> Self:
        """A quadratic energy in three dimensions, of which two projections are known, one of them exactly."""
        matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
        linear = LinearObservation.from_matrix(matrix, 0.5)._replace(noise=torch.tensor([0.0, 0.5]))
        return cls(lambda y: 0.5 * y.square().sum(1), 0.1, linear, torch.tensor([[0.3, -0.2]]), torch.ones(1, 3))

    def restore(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """y with the fixed directions at their values."""
        flat = y.flatten(1)
        return (flat - (flat @ self.hard) @ self.hard.T + self.fixed).reshape(y.shape)

    def value_and_grad(self, y: Float[Tensor, "b *d"]) -> tuple[Tensor, Tensor]:
        """(E, dE/dy); the gradient is zero along the fixed directions."""
        y = self.restore(y)
        u, g = energy_and_grad(self.energy, y)
        residual = self.projections - y.flatten(1) @ self.soft
        g = g.flatten(1) - (residual * self.precision) @ self.soft.T
        g = g - (g @ self.hard) @ self.hard.T
        return u + 0.5 * (residual.square() * self.precision).sum(1), g.reshape(y.shape)

    def __call__(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats, up to a constant."""
        y = self.restore(y)
        residual = self.projections - y.flatten(1) @ self.soft
        return self.energy(y) + 0.5 * (residual.square() * self.precision).sum(1)
