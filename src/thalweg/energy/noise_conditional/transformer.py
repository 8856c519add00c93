"""A transformer inside an anchored energy: U(y, t) of images by patches, or of rows by groups of numbers.

The network F sees the scaled point, the linear denoiser's estimate and the whitened point as channels, cut into tokens.
The noise level modulates each block and the head (`energy.networks.encoder`, Peebles & Xie 2023); the head begins at
zero, so that the energy begins as the anchor's Gaussian. `thalweg.energy.noise_conditional.anchored` has the energy.
"""

import torch
from torch import Tensor, nn

from thalweg.energy.networks.encoder import Encoder
from thalweg.energy.networks.patches import Embedding, Patches, default_patch
from thalweg.energy.networks.transformer import check_heads
from thalweg.energy.noise_conditional.anchored import AnchoredEnergy, NetworkInputs
from thalweg.energy.shape import check_shape


class NoiseConditionalTransformerEnergy(AnchoredEnergy):
    """U(y, t): noisy images (B, C, H, W) or rows (B, D) to energies in nats (B,).

    The anchor keeps D² numbers up to D = C H W = 1,536. Attention is on a fused kernel, which has first derivatives
    only, except in `energy.engine.attention.double_backward`.

    Args:
        shape: (C, H, W) or (D,).
        width: Numbers of a token.
        depth: Blocks.
        num_heads: Heads of attention; width / num_heads must be even, for images a multiple of 4.
        patch: Pixels of a patch's side, or numbers of a row, that make a token. None: 4 pixels, or 1 number.
        embed: Dimension of the level's embedding.
        expansion: Units of a block's hidden layer, over width.
        checkpoint: Whether blocks are computed again in the backward pass, in place of keeping their numbers.
        sigma_min: Lowest noise deviation, in model units.
        sigma_max: Highest noise deviation.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        width: int = 96,
        depth: int = 4,
        num_heads: int = 4,
        patch: int | None = None,
        embed: int = 64,
        expansion: int = 4,
        checkpoint: bool = False,
        sigma_min: float = 0.03,
        sigma_max: float = 5.0,
    ):
        size = check_shape(shape)
        if len(size) != 3:
            size = check_shape(shape, "D")
        super().__init__(shape=size, embed=embed, sigma_min=sigma_min, sigma_max=sigma_max)
        self.patches = Patches(size, patch if patch is not None else default_patch(size))
        check_heads(width, num_heads, self.patches)
        self.stem = Embedding(self.patches, len(NetworkInputs._fields) * self.patches.numbers, width)
        self.encoder = Encoder(
            width,
            depth,
            num_heads,
            expansion=expansion,
            embed=embed,
            base=self.patches.base,
            checkpoint=checkpoint,
        )
        self.head = nn.Linear(width, self.patches.numbers, bias=False)
        nn.init.zeros_(self.head.weight)

    @classmethod
    def example(cls) -> "NoiseConditionalTransformerEnergy":
        """A small instance for tests and documentation."""
        return cls(shape=(1, 6, 5), width=16, depth=1, num_heads=2, patch=2, embed=16)

    def network(self, points: NetworkInputs, level: Tensor) -> Tensor:
        """F(y~, w, v, t), flat as the input."""
        parts = [part.reshape(-1, *self.shape) for part in points]
        positions = self.patches.positions(parts[0])
        h = self.stem(torch.cat([self.patches.cut(part) for part in parts], dim=2), positions)
        f = self.head(self.encoder(h, modulation=level, positions=positions))
        return self.patches.join(f, parts[0].shape).flatten(1)
