"""An energy with an additive constant to learn, for objectives that fix it."""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.energy.base import Fittable
from thalweg.energy.density.stationary import anchor_of
from thalweg.energy.shape import check_shape


class WithConstantEnergy(nn.Module):
    """E(x) + c nats of any network E(x), (B, *) to (B,); c () is a parameter, zero at first.

    `fit` sets c such that the mean energy of the data is that of a Gaussian fitted to them: a start that a learning
    rate need not cover. Once learned, by noise-contrastive estimation say, c is the network's log Z.

    Args:
        network: E(x).
        shape: Shape of one position.
    """

    def __init__(self, *, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.shape = network, check_shape(shape)
        self.constant = nn.Parameter(torch.zeros(()))

    @classmethod
    def example(cls) -> Self:
        """A small instance, for the contract suite."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return cls(network=_Example(), shape=(3,))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n *d"]) -> Self:
        """Set c from training data in model units, after the network's own `fit` if it has one."""
        if isinstance(self.inner, Fittable):
            self.inner.fit(x)
        rows = x.flatten(1)
        if len(rows) > 1 and bool((rows != rows[0]).any()):
            gaussian = anchor_of(self.shape).fit(rows)
            level = gaussian(rows.float(), torch.zeros(len(rows)))[0].mean()
            self.constant.copy_(level - torch.cat([self.inner(part) for part in x.split(256)]).mean())
        return self

    def forward(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """E(x) + c."""
        return self.inner(x) + self.constant


class _Example(nn.Module):
    """A perceptron with a quadratic term, so that exp(-E) has a finite integral."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(1) + self.layers(x).squeeze(1)
