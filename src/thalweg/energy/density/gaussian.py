"""The Gaussian that anchors a learned noise-conditional energy: the data's own mean and covariance, smoothed.

Data with mean m and covariance C, plus noise of variance t, has at every t the Gaussian approximation
N(m, C + t I), whose energy is known exactly, constant included:

    U0(y, t) = 1/2 (y - m)' (C + t I)^-1 (y - m) + 1/2 log det(2 pi (C + t I)).

As t grows the smoothed data tend to this Gaussian, so a learned correction that vanishes at t_max leaves U normalised.
Far from the data, where no network is trained, U0 grows quadratically.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from thalweg.core.errors import UserError


class SpectralGaussian(nn.Module, ABC):
    """Abstract N(m, C + t I) with C = V diag(l) V', V orthogonal: noise of variance t adds t to each l.

    A subclass says how V is stored. Every function of C, its inverse and its determinant among them, is then two
    products with V and a scaling by numbers, whatever t is. Unfitted, C is the identity.
    """

    dim: int
    mean: Tensor
    spectrum: Tensor

    @abstractmethod
    def coordinates(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """V' x of each row."""

    @abstractmethod
    def combination(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """V z of each row, the inverse of `coordinates`."""

    @abstractmethod
    def fit(self, x: Float[Tensor, "n d"], *, t: float = 0.0) -> "SpectralGaussian":
        """Set m and C from rows of data; `t`: the noise variance at which candidates for C are compared, if any are."""

    def forward(self, y: Float[Tensor, "b d"], t: Float[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        """(U0 (B,), w, v): the linear (Wiener) denoiser's estimate of x - m, and the whitened point, both (B, D).

        w = C (C + t I)^-1 (y - m), and v = (C + t I)^-1/2 (y - m), whose law is N(0, I) under this Gaussian.
        """
        total = self.spectrum + t[:, None]
        root = total.rsqrt()
        white = self.coordinates(y - self.mean) * root
        denoised, whitened = self.combination(torch.cat([self.spectrum * root * white, white])).chunk(2)
        return self._energy(white, total), denoised, whitened

    @torch.no_grad()
    def derivatives(self, y: Float[Tensor, "b d"], t: Float[Tensor, " b"]) -> tuple[Tensor, ...]:
        """(U0, dU0/dy, dU0/dt, w, dw/dt, v, dv/dt) by formula: two products with V for all of them."""
        total = self.spectrum + t[:, None]
        root = total.rsqrt()
        white = self.coordinates(y - self.mean) * root
        slope = white * root
        kept = self.spectrum * slope
        of_y, w, w_fall, v, v_fall = self.combination(
            torch.cat([slope, kept, kept / total, white, 0.5 * white / total])
        ).chunk(5)
        of_t = 0.5 * (total.reciprocal().sum(1) - slope.square().sum(1))
        return self._energy(white, total), of_y, of_t, w, -w_fall, v, -v_fall

    def pull_back(
        self, of_denoised: Float[Tensor, "b d"], of_whitened: Float[Tensor, "b d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b d"]:
        """The gradient in y of a function of w and v, from its gradients in these, whose Jacobians are symmetric."""
        total = self.spectrum + t[:, None]
        of_w, of_v = self.coordinates(torch.cat([of_denoised, of_whitened])).chunk(2)
        return self.combination(self.spectrum / total * of_w + total.rsqrt() * of_v)

    def _energy(self, white: Tensor, total: Tensor) -> Tensor:
        """U0 from the whitened coordinates and the variances l + t, both (B, D)."""
        return 0.5 * (white.square().sum(1) + total.log().sum(1)) + 0.5 * self.dim * math.log(2 * math.pi)

    def residual_scale(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """c(t) = sqrt(mean_i l_i / (l_i + t)), (B,): the error of the linear denoiser in units of the noise.

        It scales the network's output, which corrects that error.
        """
        return (self.spectrum / (self.spectrum + t[:, None])).mean(1).sqrt()

    def draw(self, n: int, t: float, generator: Generator) -> Float[Tensor, "n d"]:
        """n exact draws from N(m, C + t I)."""
        z = torch.randn(n, self.dim, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.combination(z * (self.spectrum + t).sqrt())


class SmoothedGaussian(SpectralGaussian):
    """N(m, C + t I) in the eigenbasis of a full C; `fit` sets m and C from data, (N, D).

    Costs one (B, D) x (D, D) product an evaluation and D² numbers of storage: meant for D up to some 1,500. Of larger
    images there is `thalweg.energy.density.stationary`.
    """

    basis: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim))
        self.register_buffer("spectrum", torch.ones(dim))

    def coordinates(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """V' x of each row."""
        return x @ self.basis

    def combination(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """V z of each row."""
        return z @ self.basis.T

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n d"], *, t: float = 0.0) -> "SmoothedGaussian":
        """Set the mean to the sample's, C to its covariance S shrunk towards a sphere: C = (1 - a) S + a (tr S / d) I.

        a is Ledoit and Wolf's (2004) estimate of the best share. It keeps the variance of a coordinate that is constant
        in the data above zero. `t` is not looked at. UserError on fewer than two rows, or where all rows are the same.
        """
        require_rows(x)
        from sklearn.covariance import ledoit_wolf_shrinkage

        mean = x.double().mean(0)
        centred = x.double() - mean
        spectrum, basis = torch.linalg.eigh(centred.T @ centred / x.shape[0])
        require_variance(float(spectrum[-1]))
        share = float(ledoit_wolf_shrinkage(centred.cpu().numpy(), assume_centered=True))
        spectrum = (1 - share) * spectrum.clamp(min=0) + share * spectrum.mean()
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.spectrum.copy_(spectrum)
        return self


def require_rows(x: Tensor) -> None:
    """UserError unless there are two rows or more."""
    if x.shape[0] < 2:
        raise UserError(f"must have 2 rows or more for a covariance; it has {len(x)}", argument="x")


def require_variance(largest: float) -> None:
    """UserError unless the largest variance is above zero."""
    if largest <= 0:
        raise UserError("must vary; every training row is the same", argument="x", hint="give other data")
