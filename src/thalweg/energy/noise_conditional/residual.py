"""A residual MLP inside an anchored energy: U(y, t) of vectors (tables, features, 2-D toys)."""

import torch
from torch import Tensor, nn

from thalweg.energy.engine.silu import silu
from thalweg.energy.noise_conditional.anchored import AnchoredEnergy, NetworkInputs
from thalweg.energy.shape import check_shape


class Block(nn.Module):
    """h + W2 silu(modulated(W1 silu(h)))."""

    def __init__(self, width: int, embed: int):
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.outer = nn.Linear(width, width, bias=False)
        self.modulate = nn.Linear(embed, 2 * width)
        nn.init.zeros_(self.outer.weight)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.modulate(level).chunk(2, dim=1)
        return h + self.outer(silu(shift + self.inner(silu(h)) * (1 + scale)))


class ResidualEnergy(AnchoredEnergy):
    """U(y, t): noisy vectors (B, D), the clean ones standardised, to energies in nats (B,).

    Args:
        shape: (D,).
        width: Units of each layer.
        num_blocks: Residual blocks.
        embed: Dimension of the level's embedding.
        sigma_min: Lowest noise deviation, in model units.
        sigma_max: Highest noise deviation.
    """

    def __init__(
        self,
        *,
        shape: tuple[int],
        width: int = 128,
        num_blocks: int = 3,
        embed: int = 64,
        sigma_min: float = 0.02,
        sigma_max: float = 10.0,
    ):
        (dim,) = check_shape(shape, "D")
        super().__init__(shape=shape, embed=embed, sigma_min=sigma_min, sigma_max=sigma_max)
        self.stem = nn.Linear(len(NetworkInputs._fields) * dim, width)
        self.blocks = nn.ModuleList(Block(width, embed) for _ in range(num_blocks))
        self.head = nn.Linear(width, dim, bias=False)
        nn.init.zeros_(self.head.weight)

    @classmethod
    def example(cls) -> "ResidualEnergy":
        """A small instance for tests and documentation."""
        return cls(shape=(3,), width=16, num_blocks=1, embed=16)

    def network(self, points: NetworkInputs, level: Tensor) -> Tensor:
        """F(y~, w, v, t), (B, D)."""
        h = self.stem(torch.cat(points, dim=1))
        for block in self.blocks:
            h = block(h, level)
        return self.head(silu(h))
