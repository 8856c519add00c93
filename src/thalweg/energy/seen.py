"""Linear observations in a form that samplers can use: orthonormal directions, each known up to some noise.

    seen = A x + s n,   A = L diag(S) V'   =>   (L' seen)_i / S_i = <v_i, x> + (s / S_i) n_i

so a mask, a blur and a reduction in size all say of some directions v_i what <v_i, x> is, with a noise of their own
(Kawar et al. 2021). Against a Gaussian guess at x both the update and exact draws are matrix products.
"""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.energy.base import EnergyFn, energy_and_grad

RIDGE = 1e-6  # relative; keeps the factor of an exact observation of nearly constant pixels
LEAST = 1e-3  # a direction that A shrinks by more than this, relative to its largest, is taken for unseen


class Directions(NamedTuple):
    """What an operator shows: `basis` (D, m) orthonormal columns v_i, `noise` (m,) standard deviations."""

    basis: Tensor
    noise: Tensor
    inverse: Tensor  # (m, k): what was seen to <v_i, x>
    pixels: Tensor | None = None  # (m,): where the directions are pixels, which

    @classmethod
    def of(cls, matrix: Float[Tensor, "k d"], noise: float) -> Self:
        """From A and the standard deviation s of the noise on what was seen."""
        ones = matrix == 1
        if bool(((matrix == 0) | ones).all() and (ones.sum(1) == 1).all() and (ones.sum(0) <= 1).all()):
            noises, alike = matrix.new_full((len(matrix),), noise), torch.eye(len(matrix)).to(matrix)
            return cls(matrix.T.contiguous(), noises, alike, ones.int().argmax(1))
        left, size, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        kept = size > LEAST * size.max()
        left, size, right = left[:, kept], size[kept], right[kept]
        inverse = left.T / size[:, None]
        return cls(right.T.to(matrix), (noise / size).to(matrix), inverse.to(matrix))

    def read(self, seen: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """<v_i, x> + noise, of each row."""
        return seen @ self.inverse.T

    def place(self, x: Float[Tensor, "b d"], values: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """x with <v_i, x> set to these values."""
        return x + (values - x @ self.basis) @ self.basis.T

    def update(self, covariance: Float[Tensor, "d d"], off: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """C V (V' C V + diag(noise²))^-1 off: how a Gaussian guess with covariance C moves when read - V' guess = off.

        One Cholesky factor of m x m numbers, in double precision.
        """
        if self.pixels is not None:
            across, inner = covariance[:, self.pixels], covariance[self.pixels][:, self.pixels].double()
        else:
            across = covariance @ self.basis
            inner = (self.basis.T @ across).double()
        if not len(inner):
            return off.new_zeros(len(off), len(covariance))
        ridge = self.noise.double().square() + RIDGE * inner.diagonal().mean()
        factor = torch.linalg.cholesky(0.5 * (inner + inner.T) + ridge.diag())
        return torch.cholesky_solve(off.double().T, factor).T.to(off) @ across.T


class Given:
    """U(y, t) + what was seen: an ordinary energy of y = x + sqrt(t) e that knows of the observation.

    The noise e may be made of the observation's own. So a direction with noise_i² > t says that
    <v_i, y> = read_i + sqrt(noise_i² - t) n, which is exact whatever U is. A direction known better than that is
    *held*: <v_i, y> stays at `held`, which should be read_i + sqrt(t - noise_i²) n with n drawn once; it then says what
    an observation of noise sqrt(t) would, an error that goes with t. At t = 0 both are exact.
    """

    def __init__(self, energy: EnergyFn, t: float, directions: Directions, read: Tensor, held: Tensor):
        hard = directions.noise.square() <= t
        self.energy, self.shape = energy, held.shape[1:]
        self.hard, self.soft = directions.basis[:, hard], directions.basis[:, ~hard]
        self.read = read[:, ~hard]
        self.precision = 1 / (directions.noise[~hard].square() - t)
        flat = held.flatten(1)
        self.fixed = (flat @ self.hard) @ self.hard.T

    def restore(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """y with the held directions put back."""
        flat = y.flatten(1)
        return (flat - (flat @ self.hard) @ self.hard.T + self.fixed).reshape(y.shape)

    def value_and_grad(self, y: Float[Tensor, "b *d"]) -> tuple[Tensor, Tensor]:
        """(E, dE/dy), the held directions' slope being zero."""
        y = self.restore(y)
        u, g = energy_and_grad(self.energy, y)
        off = self.read - y.flatten(1) @ self.soft
        g = g.flatten(1) - (off * self.precision) @ self.soft.T
        g = g - (g @ self.hard) @ self.hard.T
        return u + 0.5 * (off.square() * self.precision).sum(1), g.reshape(y.shape)

    def __call__(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats, up to a constant."""
        y = self.restore(y)
        off = self.read - y.flatten(1) @ self.soft
        return self.energy(y) + 0.5 * (off.square() * self.precision).sum(1)
