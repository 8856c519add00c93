"""A residual perceptron as an energy on vectors."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualEnergy(nn.Module):
    """E(x) = |x|² / 2 - f(x) + c nats for vectors (B, D), f a perceptron with residual blocks.

    The quadratic term makes exp(-E) decay far from the data. The constant c is learned, for objectives that fix it.

    Args:
        shape: (D,), given by the run.
        width: Units of each layer.
        num_blocks: Residual blocks h + W2 silu(W1 h).
    """

    def __init__(self, *, shape: tuple[int, ...] = (2,), width: int = 64, num_blocks: int = 2):
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(shape[0], width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """E(x), (B,)."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return 0.5 * x.square().sum(1) - self.head(F.silu(h)).squeeze(1)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.outer(F.silu(self.inner(F.silu(h))))
