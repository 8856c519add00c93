"""The Gaussian that anchors an energy of larger images: its covariance takes K² numbers instead of D².

The covariance of natural images is nearly stationary (Field 1987): it depends on the distance of two pixels, so the
cosine transform nearly diagonalises it. Unlike Fourier's, it does not take opposite edges for neighbours (Ahmed,
Natarajan & Rao 1974). What is not stationary, such as an object in the middle, lies in the low frequencies. So

    C = V diag(l) V',    V = R T' blockdiag(Q, I),

with R a rotation of the colour channels, T the cosine transform of each, and Q a full rotation of the K lowest
frequencies among themselves. V is orthogonal: noise of variance t adds t to l, and log det(C + t I) = sum log(l + t) is
exact. `thalweg.energy.density.gaussian` has what follows from l and V.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from thalweg.energy.base import Capability
from thalweg.energy.density.gaussian import SmoothedGaussian, SpectralGaussian, require_rows, require_variance
from thalweg.energy.shape import check_shape

DENSE = 1536  # numbers of an image, up to which the full covariance is kept
LOW = 1024  # K: frequencies whose covariance is full
CHROMA = 2.0  # a frequency of the second and third channel counts as this much higher: colours are smoother
SHARES = (0.05, 0.2, 0.5, 0.8, 1.0)  # of the low frequencies' covariance shrunk to its diagonal; 1: stationary
HELD_OUT = 5  # every fifth row compares these
LEAST_ROWS = 40  # for a comparison; with fewer rows C is stationary
PRIOR = 10.0  # rows' worth of the neighbouring frequencies in the variance of each
FLOOR = 1e-6  # of the mean variance: the least
BLOCK = 256  # rows that are transformed at a time


def anchor_of(shape: tuple[int, ...]) -> SpectralGaussian:
    """The Gaussian for data of a shape: a full covariance, of images of more than 1,536 numbers a structured one."""
    size = math.prod(shape)
    return StationaryGaussian(shape) if len(shape) == 3 and size > DENSE else SmoothedGaussian(size)


class _Moments(NamedTuple):
    """Of n rows' coefficients: their sum (D,), sum of squares (D,), and sum of products of the K lowest (K, K)."""

    n: int
    first: Tensor
    second: Tensor
    products: Tensor

    def plus(self, other: "_Moments") -> "_Moments":
        first, second, products = (a + b for a, b in zip(self[1:], other[1:], strict=True))
        return _Moments(self.n + other.n, first, second, products)

    def around(self, centre: Tensor) -> tuple[Tensor, Tensor]:
        """(mean squares (D,), mean products (K, K)) of the coefficients minus a centre."""
        mean, k = self.first / self.n, len(self.products)
        second = self.second / self.n - 2 * centre * mean + centre.square()
        a, c = mean[:k], centre[:k]
        cross = torch.outer(a, c)
        return second.clamp(min=0), self.products / self.n - cross - cross.T + torch.outer(c, c)


@runtime_checkable
class RecordsChoice(Protocol, metaclass=Capability):
    """A part that chose its own form when it was fitted. A run asks, and config.json and the card keep the figures."""

    @property
    def choice(self) -> Mapping[str, Any] | None:
        """What was chosen and by which figures, fit for JSON; None where there was nothing to choose."""
        ...


class StationaryGaussian(SpectralGaussian):
    """N(m, C + t I) of images, C diagonal in the cosine domain but for a full block of the K lowest frequencies.

    Stores 2 D + K² numbers, K at most 1,024. An evaluation costs 2 K² + 2 D (H + W) multiplications a row.

    Args:
        shape: (C, H, W), D numbers in all.
    """

    colours: Tensor
    block: Tensor
    order: Tensor
    inverse: Tensor
    vertical: Tensor
    horizontal: Tensor

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = check_shape(shape, "CHW")
        self.dim, channels = math.prod(self.shape), self.shape[0]
        self.low = min(LOW, self.dim)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("spectrum", torch.ones(self.dim))
        self.register_buffer("colours", torch.eye(channels))
        self.register_buffer("block", torch.eye(self.low))
        order = _frequencies(self.shape)
        for name, known in (
            ("order", order),
            ("inverse", np.argsort(order)),
            ("vertical", cosines(self.shape[1])),
            ("horizontal", cosines(self.shape[2])),
        ):
            kind = torch.get_default_dtype() if known.dtype == np.float64 else torch.int64
            self.register_buffer(name, torch.from_numpy(known).to(kind), persistent=False)
        self.choice: dict[str, Any] | None = None  # what `fit` has chosen, and by which figures

    def coordinates(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """V' x of each row."""
        return self._rotated(self._frequencies_of(x), self.block)

    def combination(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """V z of each row."""
        channels, height, width = self.shape
        z = self._rotated(z, self.block.T)[:, self.inverse]
        z = (z.reshape(-1, height) @ self.vertical).view(-1, channels, width, height).transpose(2, 3)
        z = (z.reshape(-1, width) @ self.horizontal).view(-1, channels, height * width)
        return (self.colours @ z).flatten(1)

    def _frequencies_of(self, x: Tensor) -> Tensor:
        """Cosine coefficients of each row, lowest frequencies first."""
        channels, height, width = self.shape
        x = self.colours.T @ x.reshape(-1, channels, height * width)
        x = (x.view(-1, width) @ self.horizontal.T).view(-1, channels, height, width).transpose(2, 3)
        return (x.reshape(-1, height) @ self.vertical.T).view(-1, self.dim)[:, self.order]

    def _rotated(self, z: Tensor, by: Tensor) -> Tensor:
        return torch.cat([z[:, : self.low] @ by, z[:, self.low :]], 1)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n d"], *, t: float = 0.0) -> "StationaryGaussian":
        """Set m and C from rows: variances of the coefficients, and the full covariance of the K lowest, shrunk.

        The share by which the latter is shrunk to its own diagonal is that of the highest likelihood on every fifth row
        with noise of variance `t`, with moments of the others; share 1 is the stationary covariance. Then all rows
        count. Takes D + K² numbers beside the rows. `choice` keeps the figures. UserError as `SmoothedGaussian.fit`.
        """
        require_rows(x)
        for name, side in (("vertical", self.shape[1]), ("horizontal", self.shape[2])):
            self.get_buffer(name).copy_(torch.from_numpy(cosines(side)))  # exact again, where it is float64 now
        self.mean.copy_(torch.stack([part.double().sum(0) for part in x.split(BLOCK)]).sum(0) / len(x))
        self.colours.copy_(self._colour_rotation(x))
        held_out = torch.arange(len(x), device=x.device) % HELD_OUT == HELD_OUT - 1
        fitted, others = (self._moments(x, which.nonzero()[:, 0]) for which in (~held_out, held_out))
        share = self._chosen(fitted, others, t) if len(x) >= LEAST_ROWS else 1.0
        together = fitted.plus(others)
        variance, products = together.around(together.first / together.n)
        require_variance(float(variance.max()))
        variance = self._steadied(variance, together.n)
        self.block.copy_(torch.eye(self.low))
        if share < 1:
            least = FLOOR * variance.mean()
            spectrum, basis = torch.linalg.eigh(_shrunk(products, share))
            variance[: self.low] = spectrum.clamp(min=least)
            self.block.copy_(basis)
        self.spectrum.copy_(variance)
        return self

    def _colour_rotation(self, x: Tensor) -> Tensor:
        """Eigenvectors of the channels' covariance over all pixels (C, C), the largest variance first."""
        channels = self.shape[0]
        total = torch.zeros(channels, channels, dtype=torch.float64, device=x.device)
        for some in x.split(BLOCK):
            part = some.to(self.mean) - self.mean
            flat = part.reshape(len(part), channels, -1).transpose(0, 1).reshape(channels, -1)
            total += (flat @ flat.T).double()
        return torch.linalg.eigh(total)[1].flip(1)

    def _moments(self, x: Tensor, rows: Tensor) -> _Moments:
        first, second = torch.zeros(2, self.dim, dtype=torch.float64, device=x.device)
        found = _Moments(0, first, second, first.new_zeros(self.low, self.low))
        for some in rows.split(BLOCK):
            part = x[some].to(self.mean) - self.mean
            z = self._frequencies_of(part)
            low = z[:, : self.low]
            squares = z.square().sum(0).double()
            found = found.plus(_Moments(len(z), z.sum(0).double(), squares, (low.T @ low).double()))
        return found

    def _steadied(self, variance: Tensor, n: int) -> Tensor:
        """Variances (D,) drawn to the mean of 5 x 5 neighbouring frequencies by `PRIOR` rows."""
        channels, height, width = self.shape
        plane = variance[self.inverse].view(1, channels, width, height)
        near = F.avg_pool2d(plane, 5, stride=1, padding=2, count_include_pad=False).flatten()[self.order]
        return ((n * variance + PRIOR * near) / (n + PRIOR)).clamp(min=FLOOR * variance.mean())

    def _chosen(self, fitted: _Moments, held_out: _Moments, t: float) -> float:
        """The share of the highest held-out likelihood; `choice` keeps nats a number for each."""
        centre, k = fitted.first / fitted.n, self.low
        variance, products = fitted.around(centre)
        require_variance(float(variance.max()))
        seen, seen_products = held_out.around(centre)
        total = self._steadied(variance, fitted.n) + t
        rest = (seen[k:] / total[k:] + total[k:].log()).sum()
        noise = (t + FLOOR * variance.mean()) * torch.eye(k).to(products)
        nats = {}
        for share in SHARES:
            if share == 1:
                block = (seen[:k] / total[:k] + total[:k].log()).sum()
            else:
                factor = torch.linalg.cholesky(_shrunk(products, share) + noise)
                block = torch.cholesky_solve(seen_products, factor).trace() + 2 * factor.diagonal().log().sum()
            nats[share] = float(-0.5 * ((block + rest) / self.dim + math.log(2 * math.pi)))
        best = max(nats, key=lambda share: nats[share])
        self.choice = {
            "covariance": "stationary" if best == 1 else "stationary, low frequencies full",
            "share": best,
            "variance": t,
            "rows": fitted.n,
            "held_out_rows": held_out.n,
            "nats_per_number": {str(share): round(value, 4) for share, value in nats.items()},
        }
        return best


def cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform of length n (DCT-II), (n, n): row k is sqrt(2/n) cos(pi (i + 1/2) k / n)."""
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    found = np.sqrt(2 / n) * np.cos(np.pi * (i + 0.5) * k / n)
    found[0] = np.sqrt(1 / n)
    return found


def _frequencies(shape: tuple[int, ...]) -> np.ndarray:
    """Places (D,) in the flat (C, W, H) coefficients, from the lowest frequency to the highest."""
    channels, height, width = shape
    across, down = np.arange(width)[:, None] / width, np.arange(height)[None] / height
    scale = np.where(np.arange(channels) > 0, CHROMA, 1.0)[:, None, None]
    return np.argsort(((np.hypot(across, down) + 1 / max(height, width)) * scale).ravel(), kind="stable")


def _shrunk(products: Tensor, share: float) -> Tensor:
    """(1 - share) S + share diag(S)."""
    return (1 - share) * products + share * products.diagonal().diag()
