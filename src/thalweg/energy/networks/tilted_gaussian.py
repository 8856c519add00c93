"""A perceptron on top of the data's own Gaussian: an energy of vectors that grows far from them whatever it learns.

    E(x) = 1/2 (x - m)' C^-1 (x - m) - f(g (x - m))

with m, C the data's mean and (shrunk) covariance, f a multi-layer perceptron and g the gain of its input. Where f grows
at most linearly, as with SiLU, exp(-E) can be integrated whatever the weights are, and chains come back from anywhere:
the Gaussian is the base measure of an exponential tilting (Wainwright & Jordan 2008; for images Nijkamp et al. 2020).
"""

import math
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.shape import check_rows


class TiltedGaussianEnergy(nn.Module):
    """E(x) = 1/2 (x - m)' C^-1 (x - m) - f(g (x - m)) nats for vectors (B, D), shape = (D,), f as in `MLPEnergy`.

    A `gain` g above 1 lets f bend within less than a deviation of the data: a fresh layer's units bend about once over
    sqrt(D) units of its input. `fit` sets m and C and comes before training; unfitted they are 0 and I. Costs one
    (B, D) x (D, D) product beside the perceptron. ValueError: a gain that is no positive number, another shape.
    """

    mean: Tensor
    precision: Tensor

    def __init__(self, *, shape: tuple[int] = (2,), width: int = 64, depth: int = 3, gain: float = 1.0):
        super().__init__()
        if not 0 < gain < math.inf:
            raise ValueError(f"gain={gain}: want a positive number")
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
