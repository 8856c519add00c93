"""Four densities in the plane, in about [-1, 1] x [-1, 1], to draw from; all but two moons with their log density."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

_MOON_NOISE = 0.07
_GAUSSIAN_RADIUS, _GAUSSIAN_STD = 0.8, 0.1
_RING_RADII, _RING_STD = (0.3, 0.6, 0.9), 0.04


class Toy(NamedTuple):
    """A density in the plane: a sampler (n, generator) -> (n, 2), and log p(x) in nats where it is closed."""

    sample: Callable[[int, Generator], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None
    sentence: str


def two_moons(n: int, generator: Generator) -> Float[Tensor, "n 2"]:
    """Two interleaved half circles of radius 2/3 with Gaussian noise of standard deviation 0.07."""
    angle = math.pi * _uniform(generator, n)
    upper = _uniform(generator, n) < 0.5
    sign = torch.where(upper, 1.0, -1.0).to(angle)
    arc = sign[:, None] * torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    return arc / 1.5 + _MOON_NOISE * _normal(generator, n, 2)


def eight_gaussians(n: int, generator: Generator) -> Float[Tensor, "n 2"]:
    """Eight Gaussians of standard deviation 0.1, evenly on a circle of radius 0.8."""
    which = torch.randint(8, (n,), generator=generator)
    return _centres(torch.float32)[which] + _GAUSSIAN_STD * _normal(generator, n, 2)


def eight_gaussians_log_prob(x: Float[Tensor, "b 2"]) -> Float[Tensor, " b"]:
    """log 1/8 sum_k N(x; c_k, 0.1² I)."""
    square = (x[:, None] - _centres(x.dtype).to(x.device)).square().sum(-1)
    constant = math.log(8 * 2 * math.pi * _GAUSSIAN_STD**2)
    return torch.logsumexp(-square / (2 * _GAUSSIAN_STD**2), dim=1) - constant


def checkerboard(n: int, generator: Generator) -> Float[Tensor, "n 2"]:
    """Uniform on every other square of a 4 x 4 board over [-1, 1]²."""
    row = torch.randint(4, (n,), generator=generator)
    column = 2 * torch.randint(2, (n,), generator=generator) + row % 2
    corner = torch.stack([column, row], dim=1)
    return (corner + _uniform(generator, n, 2)) / 2 - 1


def checkerboard_log_prob(x: Float[Tensor, "b 2"]) -> Float[Tensor, " b"]:
    """-log 2 on the board's squares, whose area is 2; minus infinity elsewhere."""
    cell = (2 * (x + 1)).floor()
    inside = ((cell >= 0) & (cell < 4)).all(1) & ((cell.sum(1) % 2) == 0)
    return torch.where(inside, -math.log(2.0), -math.inf).to(x.dtype)


def rings(n: int, generator: Generator) -> Float[Tensor, "n 2"]:
    """Three rings, radii 0.3, 0.6, 0.9, equally likely, with Gaussian noise of deviation 0.04 in r."""
    which = torch.randint(3, (n,), generator=generator)
    angle = 2 * math.pi * _uniform(generator, n)
    radius = torch.tensor(_RING_RADII, dtype=torch.float32)[which] + _RING_STD * _normal(generator, n)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def rings_log_prob(x: Float[Tensor, "b 2"]) -> Float[Tensor, " b"]:
    """log [ 1/3 sum_k (N(r; r_k, s²) + N(-r; r_k, s²)) / (2 pi r) ] with r = |x|; infinite at the origin."""
    r = x.square().sum(1).sqrt()
    signed = torch.stack([r, -r], dim=1)[:, :, None] - x.new_tensor(_RING_RADII)
    terms = -(signed / _RING_STD).square() / 2
    constant = math.log(len(_RING_RADII) * math.sqrt(2 * math.pi) * _RING_STD * 2 * math.pi)
    return torch.logsumexp(terms.flatten(1), dim=1) - r.log() - constant


def _uniform(generator: Generator, *size: int) -> Tensor:
    return torch.rand(*size, generator=generator, dtype=torch.float32)


def _normal(generator: Generator, *size: int) -> Tensor:
    return torch.randn(*size, generator=generator, dtype=torch.float32)


def _centres(dtype: torch.dtype) -> Tensor:
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return (_GAUSSIAN_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)).to(dtype)


TOYS = {
    "two-moons": Toy(two_moons, None, "two interleaved half circles"),
    "eight-gaussians": Toy(eight_gaussians, eight_gaussians_log_prob, "eight Gaussians on a circle"),
    "checkerboard": Toy(checkerboard, checkerboard_log_prob, "every other square of a board"),
    "rings": Toy(rings, rings_log_prob, "three concentric rings"),
}
