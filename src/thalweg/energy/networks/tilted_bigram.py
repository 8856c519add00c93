"""A transformer added to the bigram law of texts: an energy whose constant noise-contrastive estimation can learn.

    E(x) = -log q(x) - f(x) + c

with q the law of `energy.density.bigram`, f a transformer of the letters before the first end, and c a constant. There
are finitely many texts, so exp(-E) has a finite sum whatever f. An exponential tilting of q, as of a Gaussian in
`energy.networks.tilted_gaussian`; of sentences Deng et al. (2020).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thalweg.core import check
from thalweg.energy.density.bigram import BigramEnergy, allowed_letters, codes_of, codes_of_texts, inside
from thalweg.energy.networks.encoder import Encoder
from thalweg.energy.shape import check_rows

SMALLEST_PART = 64  # rows; on a CPU a batch is sorted by length and evaluated in a few parts of similar length
MOST_PARTS = 4
WAVELENGTH = 100.0  # the longest of rotary positions, over 2 pi: texts are short


class TextEnergy(nn.Module, ABC):
    """Abstract: E(x) = -log q(x) - f(x) nats of texts, q the bigram law; a subclass has `_tilt`, which is f.

    f is given the letters of a text and its first end. On a CPU a batch is sorted by length and evaluated in parts,
    each cut to its longest text.
    """

    def __init__(self, shape: Sequence[int], smoothing: float):
        super().__init__()
        self.bigram = BigramEnergy(shape=shape, smoothing=smoothing)
        self.shape = self.bigram.shape

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
        return self.fit_parts([x])

    def fit_parts(self, parts: Iterable[Float[Tensor, "n l k"]]) -> Self:
        """The same of parts of them."""
        self.count(codes_of_texts(parts, self.shape))
        return self

    def count(self, codes: Int[Tensor, "n l"]) -> None:
        """The same of their codes."""
        self.bigram.count(codes)

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
        if not len(x):
            return x.sum((1, 2))
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return self._tilt(x, tokens)
        count = tokens.sum(1)
        order = count.argsort(stable=True)
        parts = []
        for rows in order.split(max(SMALLEST_PART, -(-len(x) // MOST_PARTS))):  # each is cut to its longest text
            longest = int(count[rows[-1]])
            parts.append(self._tilt(x[rows, :longest], tokens[rows, :longest]))
        return torch.cat(parts)[order.argsort()]

    @abstractmethod
    def _tilt(self, x: Float[Tensor, "b n k"], tokens: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """f of texts cut to n letters and ends; `tokens` are the letters and the first end."""

    def forward(self, x: Float[Tensor, "b l k"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return self.bigram(x) - self.tilt(x)


class TiltedBigramEnergy(TextEnergy):
    """E(x) = -log q(x) - f(x) + c nats of texts, x one-hot (B, L, K), state 0 from the end on.

    A token of f is a letter with its neighbours, `reach` on either side, or the first end. f is the sum of a number a
    token, as a log-likelihood is. It is smooth in x, so the gradient predicts what another letter, one letter more or
    one less at the end would cost. `fit` sets q from training texts and comes before training.

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
        super().__init__(shape, smoothing)
        self.reach = check.whole("reach", reach, 0)
        self.stem = nn.Linear((2 * reach + 1) * self.num_states, width)
        self.encoder = Encoder(width, depth, num_heads, base=WAVELENGTH)
        self.head = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.head.weight)  # E begins as the bigram law; else a sum over tokens begins nats away from it
        self.constant = nn.Parameter(torch.zeros(()))

    @classmethod
    def example(cls) -> Self:
        """Texts of up to four letters out of two."""
        return cls(shape=(4, 3), width=8, depth=1, num_heads=2, reach=1)

    def _tilt(self, x: Float[Tensor, "b n k"], tokens: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
        x = x * tokens[:, :, None]
        windows = functional.pad(x, (0, 0, self.reach, self.reach)).unfold(1, 2 * self.reach + 1, 1)
        h = self.encoder(self.stem(windows.flatten(2)), tokens)
        return (self.head(h).squeeze(-1).to(x.dtype) * tokens).sum(1)

    def forward(self, x: Float[Tensor, "b l k"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return super().forward(x) + self.constant
