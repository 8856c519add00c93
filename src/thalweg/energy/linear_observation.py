"""Linear observations of x, in a form that samplers can use: orthonormal directions, each known up to some noise.

    b = A x + s n,   A = L diag(S) V'   =>   (L' b)_i / S_i = <v_i, x> + (s / S_i) n_i

Masks, blurs and reductions in size are of this kind: each gives some projections <v_i, x>, each with its own noise
(Kawar et al. 2021). For a Gaussian x both the posterior mean and exact draws are then matrix products.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.energy.base import EnergyFn, energy_and_grad

RIDGE = 1e-6  # relative; keeps the factor of an exact observation of nearly constant pixels
LEAST = 1e-3  # a direction that A shrinks by more than this, relative to its largest, counts as not observed
TOLERANCE, ITERATIONS = 1e-4, 200  # of conjugate gradients: the relative residual at which they stop, and at most
UNEVEN = 4.0  # between the largest and the least variance of the noise, up to which one preconditioner will do
FAR_ABOVE = 1e3  # the least variance of the noise: that of the data from which the noise says little of the inverse
POWER = 10  # products that estimate a largest eigenvalue
Map = Callable[[Tensor], Tensor]
log = logging.getLogger("thalweg")


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


class SeparableBasis(NamedTuple):
    """The directions of an operator that acts alike on all channels, and on columns and rows one after the other.

    A = I (x) A_v (x) A_h with A_v = L_v diag(S_v) V_v' and A_h alike: a direction is a product of a channel, a column
    of V_v and one of V_h. Its cost is that of products with the factors: no matrix of D numbers to a side is made.

    Attributes:
        left: L_v and L_h, (kv, mv) and (kh, mh).
        right: V_v and V_h, (H, mv) and (W, mh).
        kept: The numbers of the directions among all C mv mh products, (m,).
        size: The singular value of each, (m,).
    """

    left: tuple[Tensor, Tensor]
    right: tuple[Tensor, Tensor]
    kept: Tensor
    size: Tensor

    @classmethod
    def of(
        cls, vertical: Float[Tensor, "kv h"], horizontal: Float[Tensor, "kh w"], channels: int, scale: float
    ) -> Self:
        """Of A_v and A_h, times `scale`; without directions that it shrinks as `LinearObservation.from_matrix` says."""
        (up, down, high), (near, far, wide) = (
            torch.linalg.svd(a.double(), full_matrices=False) for a in (vertical, horizontal)
        )
        size = scale * torch.outer(down, far).flatten().repeat(channels)
        kept = (size > LEAST * size.max()).nonzero()[:, 0]
        left, right = (up.to(vertical), near.to(vertical)), (high.T.to(vertical), wide.T.to(vertical))
        return cls(left, right, kept, size[kept].to(vertical))

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        left, right = ((a.to(device), b.to(device)) for a, b in (self.left, self.right))
        return type(self)(left, right, self.kept.to(device), self.size.to(device))

    def select(self, which: Bool[Tensor, " m"]) -> Self:
        """Some of the directions."""
        return self._replace(kept=self.kept[which], size=self.size[which])

    def project(self, measurements: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """(L' b)_i / S_i of each row."""
        return self._products(measurements, *self.left) / self.size

    def projections_of(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """<v_i, x> of each row."""
        return self._products(x, *self.right)

    def _products(self, x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        images = x.reshape(-1, len(vertical), len(horizontal))  # of each channel
        found = vertical.T.to(x) @ images @ horizontal.to(x)
        return found.reshape(*x.shape[:-1], -1)[..., self.kept]

    def spread(self, values: Float[Tensor, "b m"], size: int) -> Float[Tensor, "b d"]:
        """sum_i values_i v_i of each row, of D = `size` numbers."""
        vertical, horizontal = (a.to(values) for a in self.right)
        (height, mv), (width, mh) = vertical.shape, horizontal.shape
        found = values.new_zeros(*values.shape[:-1], size // (height * width) * mv * mh)
        found[..., self.kept] = values
        images = vertical @ found.reshape(-1, mv, mh) @ horizontal.T
        return images.reshape(*values.shape[:-1], size)


class LinearObservation(NamedTuple):
    """Known projections <v_i, x> of x on orthonormal directions, up to Gaussian noise, from a linear operator A.

    Attributes:
        basis: The directions v_i as columns, (D, m); None where they are single pixels, or `separable`.
        noise: The standard deviation of each projection, (m,).
        inverse: The matrix from the measurements b to the projections, (m, k); None where they are the same.
        pixels: The index of each direction where the directions are single pixels, (m,); otherwise None.
        size: D.
        separable: The directions, and the way from measurements, of a separable operator; otherwise None.
    """

    basis: Tensor | None
    noise: Tensor
    inverse: Tensor | None
    pixels: Tensor | None
    size: int
    separable: SeparableBasis | None = None

    @classmethod
    def from_separable(cls, basis: SeparableBasis, size: int, noise: float) -> Self:
        """Of a separable operator on images of D = `size` numbers: no matrix is made."""
        return cls(None, noise / basis.size, None, None, size, basis)

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
        separable = None if self.separable is None else self.separable.to(device)
        return type(self)(basis, self.noise.to(device), inverse, pixels, self.size, separable)

    def select(self, which: Bool[Tensor, " m"]) -> Self:
        """Some of the directions; without a way from measurements, which are not theirs alone."""
        basis, pixels = (None if a is None else a[..., which] for a in (self.basis, self.pixels))
        separable = None if self.separable is None else self.separable.select(which)
        return type(self)(basis, self.noise[which], None, pixels, self.size, separable)

    def project(self, measurements: Float[Tensor, "b k"]) -> Float[Tensor, "b m"]:
        """<v_i, x> + noise, from the measurements of each row."""
        if self.separable is not None:
            return self.separable.project(measurements)
        return measurements if self.inverse is None else measurements @ self.inverse.T

    def projections_of(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """<v_i, x> of each row, in the precision of x."""
        if self.basis is not None:
            return x @ self.basis.to(x.dtype)
        if self.separable is not None:
            return self.separable.projections_of(x)
        return x[..., self.pixels]

    def spread(self, values: Float[Tensor, "b m"]) -> Float[Tensor, "b d"]:
        """sum_i values_i v_i of each row."""
        if self.basis is not None:
            return values @ self.basis.to(values.dtype).T
        if self.separable is not None:
            return self.separable.spread(values, self.size)
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
        if self.separable is not None:
            raise TypeError("a separable observation goes with products of the covariance")  # both are for large images
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

        The preconditioner V' (C + noise² I)^-1 V is the inverse itself but for the rim of what is observed, where all
        directions have about one noise. Where they do not, as those of a blur, it may take too many steps, and
        diag(noise²)^-1 is tried as well: it takes few where C is not far above the least noise.
        """
        ridge = self.noise.square() + RIDGE * covariance.scale
        usual = float(ridge.mean())

        def exact(a: Tensor) -> Tensor:
            return self.projections_of(covariance(self.spread(a)))

        def product(a: Tensor) -> Tensor:
            return exact(a) + ridge * a

        def by_covariance(r: Tensor) -> Tensor:
            return self.projections_of(covariance.solve(self.spread(r), usual))

        def by_noise(r: Tensor) -> Tensor:
            return r / ridge

        least = float(ridge.min())
        if float(ridge.max()) <= UNEVEN * least:
            return _conjugate_gradients(product, by_covariance, residual, ITERATIONS)[0]
        quiet = _largest(exact, residual[:1]) > FAR_ABOVE * least
        found: list[tuple[Tensor, float]] = []
        for precondition in (by_covariance, by_noise) if quiet else (by_noise, by_covariance):
            found.append(_conjugate_gradients(product, precondition, residual, 2 * ITERATIONS))
            if found[-1][1] <= TOLERANCE:
                return found[-1][0]
        a, error = min(found, key=lambda each: each[1])
        log.warning("what is known of the images is fitted to a relative residual of %.1g only", error)
        return a


def _conjugate_gradients(product: Map, precondition: Map, r: Tensor, iterations: int) -> tuple[Tensor, float]:
    """(a with product(a) = r of each row, up to `TOLERANCE`; the largest relative residual)."""
    size = r.norm(dim=1)
    a = torch.zeros_like(r)
    direction, weight = torch.zeros_like(r), r.new_ones(len(r))
    for _ in range(iterations):
        if bool((r.norm(dim=1) <= TOLERANCE * size).all()):
            break
        steered = precondition(r)
        new = (r * steered).sum(1)
        direction = steered + _ratio(new, weight) * direction
        image = product(direction)
        step = _ratio(new, (direction * image).sum(1))
        a, r, weight = a + step * direction, r - step * image, new
    return a, float((r.norm(dim=1) / size.clamp(min=torch.finfo(r.dtype).tiny)).max())


def _largest(product: Map, start: Tensor) -> float:
    """About the largest eigenvalue of a product, by power iteration."""
    found = torch.ones_like(start)
    for _ in range(POWER):
        found = product(found / found.norm())
    return float(found.norm())


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
