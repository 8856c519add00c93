"""A transformer as an energy: of rows, series, words by letters, and images by patches.

The position is cut into tokens, an `Encoder` relates them, and the scores are a sum over tokens,

    f(x) = s sum_i m_i V h_i,   E(x) = a |x|² / 2 - f(x)

(-f(x) is -logsumexp of several scores, see `energy.base.marginal`). A sum, as a log-probability is one of terms: a
longer word has a larger energy. The tokens h are normalised, so f is bounded, and with a > 0 exp(-E) has a finite
integral: f tilts a normal law. With tokens that are states, state 0
ends the word: m_i is 0 after the first end and 1 up to it, and no token attends to what comes after. So E does not
depend on how much padding follows, and no parameter depends on the length.
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import marginal
from thalweg.energy.networks.encoder import Encoder
from thalweg.energy.networks.patches import Embedding, Patches, default_patch
from thalweg.energy.shape import check_shape

HEAD = 0.02  # deviation of the head's first weights: f begins near zero, whatever the number of tokens


class TransformerEnergy(nn.Module):
    """E(x) nats of rows (B, D), series (B, L, C), one-hot states (B, L, K) or images (B, C, H, W).

    Attention is on a fused kernel, which has a first derivative only, except inside `engine.attention.double_backward`.

    Args:
        shape: (D,), (L, C) or (C, H, W). Series may have any length and images any size when they are scored.
        width: Numbers of a token in the encoder.
        depth: Its blocks.
        num_heads: Heads of attention; width / num_heads must be even, for images a multiple of 4.
        patch: What makes a token: so many numbers of a row, steps of a series, or pixels of a patch's side. None: 1
            number of a row or step of a series, 4 pixels.
        tokens: Whether (L, K) are one-hot states, state 0 being the end of a word and its padding. Such an energy is
            `Discrete`. Between the states it is smooth as long as no number crosses a half.
        precision: a, of the normal law that f tilts. None: 1 for rows and series, which are standardised, 0 for images
            and states.
        scale: s. Chains at a low temperature, as of images, want energies that change by little in one training step:
            about a hundred times the temperature.
        num_outputs: Scores K; above 1, E is their free energy -log sum_k exp f_k.
        expansion: Units of a block's hidden layer, over width.
        checkpoint: Whether blocks are computed again in the backward pass, in place of keeping their numbers.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (2,),
        width: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        patch: int | None = None,
        tokens: bool = False,
        precision: float | None = None,
        scale: float = 1.0,
        num_outputs: int = 1,
        expansion: int = 4,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.shape = check_shape(shape)
        check.count(num_outputs=num_outputs)
        self.num_outputs, self.tokens = num_outputs, tokens
        self.patches = Patches(self.shape, patch if patch is not None else default_patch(self.shape))
        if tokens:
            _check_tokens(self.shape, self.patches.patch)
            self.num_states = self.shape[1]
        self.precision = precision if precision is not None else float(len(self.shape) < 3 and not tokens)
        self.scale = scale
        check.non_negative(precision=self.precision)
        check.positive(scale=scale)
        check_heads(width, num_heads, self.patches)
        self.embedding = Embedding(self.patches, self.patches.numbers, width)
        self.encoder = Encoder(
            width, depth, num_heads, expansion=expansion, base=self.patches.base, checkpoint=checkpoint
        )
        self.head = nn.Linear(width, num_outputs, bias=False)
        nn.init.normal_(self.head.weight, std=HEAD)

    @classmethod
    def example(cls) -> Self:
        """A small one: series of three numbers a step."""
        return cls(shape=(5, 3), width=8, depth=2, num_heads=2)

    def features(self, x: Float[Tensor, "b *d"]) -> tuple[Float[Tensor, "b t w"], Float[Tensor, "b t"] | None]:
        """The encoder's tokens and their weights m in the sum; None where all are 1."""
        self.patches.check(x)
        x = as_weights(x, self.head.weight)
        weights, mask = lengths(x) if self.tokens else (None, None)
        positions = self.patches.positions(x)
        h = self.embedding(self.patches.cut(x), positions)
        return self.encoder(h, mask, positions=positions), weights

    def scores(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b t k"]:
        """What each token adds to f(x); for words, what each letter adds."""
        h, weights = self.features(x)
        f = self.scale * self.head(h)
        return f if weights is None else f * weights[:, :, None]

    def outputs(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b k"]:
        """f(x) - a |x|² / 2, before the scores become an energy."""
        h, weights = self.features(x)
        f = self.scale * self.head(h.sum(1) if weights is None else (h * weights[:, :, None]).sum(1))
        return f - 0.5 * self.precision * x.flatten(1).square().sum(1, keepdim=True) if self.precision else f

    def forward(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return marginal(self.outputs(x))


def as_weights(x: Tensor, weight: Tensor) -> Tensor:
    """x, whole numbers (as of `F.one_hot`) in the weights' type; UserError for another floating type than theirs."""
    if not x.is_floating_point() and not x.is_complex():
        return x.to(weight.dtype)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        condition = f"must be in {weight.dtype}, as the weights are; it is in {x.dtype}"
        raise UserError(condition, argument="x", hint=f"give x.to({weight.dtype}), or convert the energy")
    return x


def lengths(x: Float[Tensor, "b l k"]) -> tuple[Float[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """(m, mask) of one-hot states: 1 and true up to the first end (state 0) and at it, 0 and false after it.

    m = max(0, 1 - the number of ends before), so that its gradient tells what comes to count where an end becomes a
    letter, and what ceases to where a letter becomes an end.
    """
    ends = x[:, :, 0]
    weights = (1 - (ends.cumsum(1) - ends)).clamp(min=0)
    return weights, weights > 0.5


def check_heads(width: int, num_heads: int, patches: Patches) -> None:
    """UserError unless the numbers of a head divide among the axes of positions."""
    check.count(width=width, num_heads=num_heads)
    if width % (2 * patches.axes * num_heads):
        what = (
            "4 num_heads, as positions in a plane turn two pairs"
            if patches.axes == 2
            else "2 num_heads, as they turn pairs"
        )
        condition = f"must be a multiple of {2 * patches.axes * num_heads}, {what}"
        raise UserError(condition, argument="width", value=width)


def _check_tokens(shape: tuple[int, ...], patch: int) -> None:
    if len(shape) != 2 or shape[1] < 3:
        text = "must be (L, K) for tokens, K of 3 or more: the end, and states"
        raise UserError(text, argument="shape", value=shape)
    if patch != 1:
        raise UserError("must be 1 for tokens", argument="patch", value=patch)
