"""A transformer added to the bigram law of texts: an energy whose constant noise-contrastive estimation can learn.

    E(x) = -log q(x) - f(x) + c

with q the law of `energy.density.bigram`, f a transformer of the letters before the first end, and c a constant. There
are finitely many texts, so exp(-E) has a finite sum whatever f. An exponential tilting of q, as of a Gaussian in
`energy.networks.tilted_gaussian`; of sentences Deng et al. (2020).
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from thalweg.core import check
from thalweg.energy.density.bigram import BigramEnergy, allowed_letters, codes_of, inside
from thalweg.energy.shape import check_rows

SMALLEST_PART = 64  # rows; on a CPU a batch is sorted by length and evaluated in a few parts of similar length
MOST_PARTS = 4


class TiltedBigramEnergy(nn.Module):
    """E(x) = -log q(x) - f(x) + c nats of texts, x one-hot (B, L, K), state 0 from the end on.

    A token of f is a letter with its neighbours, `reach` on either side, or the first end. f is the sum of a number a
    token, as a log-likelihood is. It is smooth in x, so the gradient predicts what another letter, one letter more or
    one less at the end would cost. `fit` sets q from training texts and comes before training. On a CPU the padding
    that a batch does not need is cut off.

    Args:
        shape: (L, K), K of 3 or more.
        width: Numbers a token.
        depth: Layers.
        num_heads: Heads of attention; a divisor of the width.
        reach: Neighbours on either side that a token begins with.
        smoothing: That of `BigramEnergy`.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (4, 3),
        width: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        reach: int = 2,
        smoothing: float = 1.0,
    ):
        super().__init__()
        check.count(width=width, depth=depth, num_heads=num_heads)
        self.reach = check.whole("reach", reach, 0)
        self.bigram = BigramEnergy(shape=shape, smoothing=smoothing)
        self.shape = self.bigram.shape
        self.stem = nn.Linear((2 * reach + 1) * self.num_states, width)
        self.encoder = _Encoder(width, depth, num_heads)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1, bias=False)
        self.constant = nn.Parameter(torch.zeros(()))

    @classmethod
    def example(cls) -> Self:
        """Texts of up to four letters out of two."""
        return cls(shape=(4, 3), width=8, depth=1, num_heads=2, reach=1)

    @property
    def num_states(self) -> int:
        """K."""
        return self.bigram.num_states

    @property
    def num_uniforms(self) -> int:
        """L: a number a letter."""
        return self.bigram.num_uniforms

    def fit(self, x: Float[Tensor, "n l k"]) -> Self:
        """Set q from training texts; UserError where a row is no text."""
        self.bigram.fit(x)
        return self

    def base_energy(self, x: Float[Tensor, "b l k"]) -> Float[Tensor, " b"]:
        """-log q(x) in nats."""
        return self.bigram(x)

    def base_draws(self, uniforms: Float[Tensor, "n l"]) -> Float[Tensor, "n l k"]:
        """Exact draws of q from uniform numbers."""
        return self.bigram.base_draws(uniforms)

    def allowed(self, x: Float[Tensor, "b l k"]) -> Bool[Tensor, "b l k"]:
        """The states that a unit may be in while the others stay, so that the row remains a text."""
        return allowed_letters(codes_of(x), self.num_states)

    def tilt(self, x: Float[Tensor, "b l k"]) -> Float[Tensor, " b"]:
        """f(x) in nats."""
        check_rows(x, self.shape)
        letters = inside(codes_of(x))
        tokens = functional.pad(letters, (1, 0), value=True)[:, :-1]  # the letters and the first end
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return self._tilt(x, tokens)
        count = tokens.sum(1)
        order = count.argsort(stable=True)
        parts = []
        for rows in order.split(max(SMALLEST_PART, -(-len(x) // MOST_PARTS))):  # each is cut to its longest text
            longest = int(count[rows[-1]])
            parts.append(self._tilt(x[rows, :longest], tokens[rows, :longest]))
        return torch.cat(parts)[order.argsort()] if parts else x.new_zeros(0)

    def _tilt(self, x: Float[Tensor, "b n k"], tokens: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
        x = x * tokens[:, :, None]
        windows = functional.pad(x, (0, 0, self.reach, self.reach)).unfold(1, 2 * self.reach + 1, 1)
        h = self.encoder(self.stem(windows.flatten(2)), tokens)
        return (self.head(self.norm(h)).squeeze(-1).to(x.dtype) * tokens).sum(1)

    def forward(self, x: Float[Tensor, "b l k"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return self.bigram(x) - self.tilt(x) + self.constant


class _Encoder(nn.Module):
    """Stand-in for energy.networks.encoder.Encoder."""

    def __init__(self, width: int, depth: int, num_heads: int):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, num_heads) for _ in range(depth))

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            h = layer(h, mask)
        return h


class _Layer(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        b, n, w = h.shape
        q, k, v = self.qkv(self.norm1(h)).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q), _rotate(k)
        low = v.dtype == torch.bfloat16
        q, k = (q.float(), k.float()) if low else (q, k)
        with torch.autocast("cpu", enabled=False):
            a = functional.scaled_dot_product_attention(
                q, k, v.to(q.dtype), attn_mask=None if mask is None else mask[:, None, None, :]
            )
        h = h + self.out(a.transpose(1, 2).reshape(b, n, w))
        return h + self.mlp(self.norm2(h))


def _rotate(q: Tensor) -> Tensor:
    n, d = q.shape[-2:]
    angle = torch.arange(n, device=q.device)[:, None] * 100.0 ** (-torch.arange(0, d, 2, device=q.device) / d)
    a, b = q.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
