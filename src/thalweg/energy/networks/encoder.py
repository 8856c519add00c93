"""A transformer's encoder: tokens (B, L, W) to tokens (B, L, W), by attention with rotary positions.

Each block is h + attention(norm(h)), then h + mlp(norm(h)) (pre-norm; Vaswani et al. 2017, Xiong et al. 2020). Queries
and keys are turned by angles that grow with the position (Su et al. 2021): the weight between two tokens depends on
their distance, and no parameter depends on the length. A noise level or a class may modulate the blocks: it shifts,
scales and gates what they add, by numbers that are zero at first (Peebles & Xie 2023).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.engine.attention import attention, of_checkpoint

BASE = 10_000.0  # of the wavelengths of rotary positions, 2 pi to 2 pi BASE
Rotation = tuple[Tensor, Tensor]  # cosines and sines (L, *)


def rotation(positions: Float[Tensor, "l p"], dim: int, base: float = BASE) -> Rotation:
    """Cosines and sines (L, D / 2) of the angles of positions with P coordinates; D divides by 2 P.

    Coordinate p turns its D / (2 P) pairs of numbers by its value times base^(-i P / (D / 2)), i = 0, 1, ….
    """
    num = dim // (2 * positions.shape[1])
    steps = torch.arange(num, device=positions.device, dtype=positions.dtype)
    angles = positions[:, :, None] * torch.exp(steps * (-math.log(base) / num))
    return angles.flatten(1).cos(), angles.flatten(1).sin()


def rotate(
    a: Float[Tensor, "b l n"], b: Float[Tensor, "b l n"], turn: Rotation
) -> tuple[Float[Tensor, "b l n"], Float[Tensor, "b l n"]]:
    """Pairs (a, b) turned by the angles of their positions: a cos - b sin, b cos + a sin."""
    cos, sin = turn
    return torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)


class Block(nn.Module):
    """h + g1 attention(norm(h)), then h + g2 mlp(norm(h)), the gates g being 1 without modulation."""

    def __init__(self, width: int, num_heads: int, expansion: int, embed: int | None, depth: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=embed is None, bias=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=embed is None, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.SiLU(), nn.Linear(expansion * width, width, bias=False)
        )
        self.modulate = None if embed is None else _zero(nn.Linear(embed, 6 * width))
        with torch.no_grad():  # so that the sum of all blocks begins at the scale of one
            for last in (self.out, self.mlp[2]):
                last.weight.mul_(1 / math.sqrt(2 * depth))  # pyright: ignore[reportCallIssue, reportArgumentType]

    def forward(self, h: Tensor, turn: Rotation, mask: Tensor | None, level: Tensor | None) -> Tensor:
        if self.modulate is None or level is None:
            h = h + self._attend(self.norm1(h), turn, mask)
            return h + self.mlp(self.norm2(h))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(level)[:, None, :].chunk(6, dim=2)
        h = h + gate1 * self._attend(torch.addcmul(shift1, self.norm1(h), 1 + scale1), turn, mask)
        return h + gate2 * self.mlp(torch.addcmul(shift2, self.norm2(h), 1 + scale2))

    def _attend(self, h: Tensor, turn: Rotation, mask: Tensor | None) -> Tensor:
        """Queries and keys are turned together, as rows of W pairs, which is faster than head by head."""
        width = h.shape[2]
        first, second, v = self.qkv(h).split(width, dim=2)
        pairs = [half.unflatten(2, (2, self.num_heads, -1)) for half in rotate(first, second, turn)]
        q, k = torch.cat(pairs, dim=4).transpose(1, 3).unbind(2)
        mixed = attention(q, k, v.unflatten(2, (self.num_heads, -1)).transpose(1, 2), mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Tokens h (B, L, W) to tokens (B, L, W) of mean 0 and variance 1 each, times learned numbers.

    Args:
        width: Numbers of a token, W.
        depth: Blocks.
        num_heads: Heads of attention; W / num_heads must be even, and divide by 4 for positions in a plane.
        expansion: Units of a block's hidden layer, over W.
        embed: Numbers of what modulates the blocks; None: nothing does.
        base: The longest wavelength of positions is 2 pi times this.
        checkpoint: Whether a block is computed again in the backward pass, in place of keeping its numbers.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        expansion: int = 4,
        embed: int | None = None,
        base: float = BASE,
        checkpoint: bool = False,
    ):
        super().__init__()
        check.count(width=width, depth=depth, num_heads=num_heads, expansion=expansion)
        check.positive(base=base)
        if width % (2 * num_heads):
            condition = f"must be a multiple of {2 * num_heads}, twice num_heads, as rotary positions turn pairs"
            raise UserError(condition, argument="width", value=width)
        self.width, self.num_heads, self.head_dim = width, num_heads, width // num_heads
        self.base, self.checkpoint = base, checkpoint
        self.blocks = nn.ModuleList(Block(width, num_heads, expansion, embed, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=embed is None, bias=False)
        self.modulate = None if embed is None else _zero(nn.Linear(embed, 2 * width))

    def forward(
        self,
        h: Float[Tensor, "b l w"],
        mask: Bool[Tensor, "b l"] | Bool[Tensor, "b l l"] | None = None,
        modulation: Float[Tensor, "b e"] | None = None,
        positions: Float[Tensor, "l p"] | None = None,
    ) -> Float[Tensor, "b l w"]:
        """Tokens that have seen all tokens where the mask is true; each row must have one. Positions: 0, 1, … .

        A mask (B, L, L) says of each token what it sees.
        """
        exact = torch.promote_types(h.dtype, torch.float32)
        if positions is None:
            positions = torch.arange(h.shape[1], device=h.device, dtype=exact)[:, None]
        cos, sin = rotation(positions.to(exact), self.head_dim, self.base)
        turn = cos.repeat(1, 2 * self.num_heads), sin.repeat(1, 2 * self.num_heads)  # for queries and keys
        keys = mask if mask is None else mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
        for block in self.blocks:
            if self.checkpoint and torch.is_grad_enabled():
                kept = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": of_checkpoint}
                h = checkpoint(block, h, turn, keys, modulation, **kept)
            else:
                h = block(h, turn, keys, modulation)
        if self.modulate is None or modulation is None:
            return self.norm(h)
        shift, scale = self.modulate(modulation)[:, None, :].chunk(2, dim=2)
        return torch.addcmul(shift, self.norm(h), 1 + scale)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
