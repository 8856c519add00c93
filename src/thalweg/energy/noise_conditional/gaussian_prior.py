"""Any network U(y, t) with what sampling needs beside it: noise levels, and a Gaussian to start from."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from thalweg.core import check
from thalweg.energy.base import HasNoiseLevels
from thalweg.energy.shape import check_shape


class GaussianPriorEnergy(nn.Module):
    """U(y, t) of a network, (B, *) and (B,) to (B,) nats, sampled from a Gaussian at the highest noise level.

    The Gaussian has the data's mean and variance in each coordinate, and t_max more variance. It is where chains start,
    not what the network says of y at t_max: so the energy's constant stays unknown. An energy that is normalised has
    a Gaussian built in: `energy.noise_conditional.anchored_network.anchored`.

    Args:
        network: U(y, t). Where it states `t_min` and `t_max` itself, these count.
        shape: Shape of one position.
        sigma_min: Lowest noise deviation, in model units.
        sigma_max: Highest noise deviation, in model units.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self, *, network: nn.Module, shape: tuple[int, ...], sigma_min: float = 0.05, sigma_max: float = 10.0
    ) -> None:
        super().__init__()
        if isinstance(network, HasNoiseLevels):
            sigma_min, sigma_max = math.sqrt(network.t_min), math.sqrt(network.t_max)
        check.positive(sigma_min=sigma_min)
        check.increasing(sigma_min=sigma_min, sigma_max=sigma_max)
        self.inner, self.shape = network, check_shape(shape)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.t_min, self.t_max = sigma_min**2, sigma_max**2
        self.register_buffer("mean", torch.zeros(self.shape))
        self.register_buffer("variance", torch.ones(self.shape))

    @classmethod
    def example(cls) -> "GaussianPriorEnergy":
        """A small instance, for the contract suite."""
        return cls(network=_Example(), shape=(3,))

    def fit(self, x: Float[Tensor, "n *d"]) -> "GaussianPriorEnergy":
        """Set mean and variance from training data in model units."""
        self.mean.copy_(x.mean(0))
        self.variance.copy_(x.var(0, correction=0))
        return self

    def forward(self, y: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """U(y, t) of the network, in nats."""
        return self.inner(y, t)

    def prior(self, n: int, generator: Generator) -> Float[Tensor, "n *d"]:
        """n draws of the Gaussian at t_max."""
        like = self.mean
        z = torch.randn(n, *self.shape, generator=generator, device=like.device, dtype=like.dtype)
        return like + (self.variance + self.t_max).sqrt() * z

    def prior_log_prob(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """log of the Gaussian's density at y, (B,) nats."""
        variance = self.variance + self.t_max
        terms = (y - self.mean).square() / variance + (2 * math.pi * variance).log()
        return -0.5 * terms.flatten(1).sum(1)


class _Example(nn.Module):
    """sum log(1 + y² / (1 + t)), scaled by one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return self.scale * (1 + y.square() / (1 + t[:, None])).log().sum(1)
