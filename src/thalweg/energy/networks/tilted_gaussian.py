"""A perceptron added to the Gaussian of the data: an energy of vectors that grows far from them, whatever the weights.

    E(x) = 1/2 (x - m)' C^-1 (x - m) - f(g (x - m))

with m, C the data's mean and (shrunk) covariance, f a multi-layer perceptron and g the gain of its input. With SiLU f
grows at most linearly, so exp(-E) has a finite integral and chains return from anywhere. The Gaussian is the base
measure of an exponential tilting (Wainwright & Jordan 2008; for images Nijkamp et al. 2020).
"""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.shape import check_rows


class TiltedGaussianEnergy(nn.Module):
    """E(x) = 1/2 (x - m)' C^-1 (x - m) - f(g (x - m)) nats for vectors (B, D), f as in `MLPEnergy`.

    `fit` sets m and C and comes before training; unfitted they are 0 and I. Costs one (B, D) x (D, D) product beside
    the perceptron.

    Args:
        shape: (D,).
        width: Units of each hidden layer of f.
        depth: Number of hidden layers of f.
        gain: g. At its first weights f varies on a scale of sqrt(D) / g, in the data's units.
    """

    mean: Tensor
    precision: Tensor

    def __init__(self, *, shape: tuple[int] = (2,), width: int = 64, depth: int = 3, gain: float = 1.0):
        super().__init__()
        check.positive(gain=gain)
        check.finite(gain=gain)
        self.gain = gain
        self.tilt = MLPEnergy(shape=shape, width=width, depth=depth)
        (dim,) = self.shape = self.tilt.shape
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("precision", torch.eye(dim))

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(3,), width=5, depth=2, gain=2.0)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n d"]) -> Self:
        """Set m and C from training data in the model's units; UserError on fewer than two rows, or all the same."""
        check_rows(x, self.shape)
        gaussian = SmoothedGaussian(self.shape[0]).fit(x)
        self.mean.copy_(gaussian.mean)
        self.precision.copy_((gaussian.basis / gaussian.spectrum) @ gaussian.basis.T)
        return self

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        check_rows(x, self.shape)
        d = x - self.mean
        return 0.5 * ((d @ self.precision) * d).sum(1) + self.tilt(self.gain * d)
