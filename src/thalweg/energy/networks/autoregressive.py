"""A transformer that reads texts letter by letter: an energy that is normalised as it stands.

    E(x) = -sum_i log p(x_i | x_1 … x_{i-1}),    p(. | x_1 … x_{i-1}) = softmax(log q_c(. | x_{i-c} … x_{i-1}) + W h_i)

with q_c a law of counts, that of `energy.density.bigram` or of longer contexts (`context_counts`), and h_i what
attention makes of the letters before i. The sum over all texts of at most L letters is 1 for any weights. So E is
-log p(x), its likelihood is exact, and each text teaches all its letters at once; other energies of texts learn from
one comparison a text. It is still an energy of whole texts: pseudo-likelihood, contrasts and Gibbs sampling change any
letter of it. As a tilt of the bigram law, f = log p / q.
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thalweg.core import check
from thalweg.core.device import autocast
from thalweg.core.errors import UserError
from thalweg.energy.density.bigram import check_uniforms, codes_of
from thalweg.energy.networks.context_counts import ContextCounts, longest_context
from thalweg.energy.networks.encoder import Encoder
from thalweg.energy.networks.tilted_bigram import WAVELENGTH, TextEnergy


class AutoregressiveEnergy(TextEnergy):
    """E(x) = -log p(x) nats of texts, x one-hot (B, L, K), state 0 from the end on; `log_z` is 0.

    Args:
        shape: (L, K), K of 3 or more.
        width: Numbers a token.
        depth: Layers.
        num_heads: Heads of attention; twice their number divides the width.
        reach: Letters back that a token begins with.
        context: Letters of the longest context that is counted, at most L; 1: the bigram law.
        slots: Most contexts of a length that are counted; fewer of a large K, so that a table has at most 2**22 counts.
        smoothing: That of `BigramEnergy`.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (4, 3),
        width: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        reach: int = 3,
        context: int = 1,
        slots: int = 1 << 16,
        smoothing: float = 1.0,
    ):
        super().__init__(shape, smoothing)
        self.reach = check.whole("reach", reach, 1)
        self.stem = nn.Linear(self.reach * self.num_states, width)
        self.encoder = Encoder(width, depth, num_heads, base=WAVELENGTH)
        self.head = nn.Linear(width, self.num_states, bias=False)
        with torch.no_grad():
            self.head.weight.mul_(0.1)  # it begins near the law of counts
        check.count(context=context, slots=slots)
        most = min(self.shape[0], longest_context(self.num_states))
        if context > most:
            text = f"must be at most {most} for texts of {self.shape[0]} letters and {self.num_states} states"
            raise UserError(text, argument="context", value=context)
        self.counts = ContextCounts(self.num_states, context, slots) if context > 1 else None

    normalised = True

    @classmethod
    def example(cls) -> Self:
        """Texts of up to four letters out of two."""
        return cls(shape=(4, 3), width=8, depth=1, num_heads=2, reach=1, context=2)

    def count(self, codes: Int[Tensor, "n l"]) -> None:
        """Count pairs, and what follows longer contexts, in the codes of training texts."""
        super().count(codes)
        if self.counts is not None:
            self.counts.fit(codes)

    def log_z(self) -> Float[Tensor, ""]:
        """0 nats, whatever the weights."""
        return torch.zeros((), device=self.head.weight.device, dtype=self.head.weight.dtype)

    def exact_draws(self, uniforms: Float[Tensor, "n l"]) -> Float[Tensor, "n l k"]:
        """Exact draws from uniform numbers, a letter a step, by the inverse of the cumulative distribution."""
        check_uniforms(uniforms, self.num_uniforms)
        x = uniforms.new_zeros(len(uniforms), *self.shape)
        states = torch.arange(self.num_states, device=x.device)
        ended = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for i, u in enumerate(uniforms.unbind(1)):
            _, log_p = self._log_conditionals(x[:, : i + 1])
            below = log_p[:, i].exp().cumsum(1)[:, :-1]  # the last state takes what rounding leaves
            code = torch.where(ended, 0, (u[:, None] >= below).sum(1))
            x[:, i] = (code[:, None] == states).to(x.dtype)
            ended = ended | (code == 0)
        return x

    def _tilt(self, x: Float[Tensor, "b n k"], tokens: Bool[Tensor, "b n"]) -> Float[Tensor, " b"]:
        log_q, log_p = self._log_conditionals(x)
        return ((log_p - log_q) * x * tokens[:, :, None]).sum((1, 2))

    def _log_conditionals(self, x: Float[Tensor, "b n k"]) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b n k"]]:
        """log q(. | the letter before) and log p(. | all letters before), of each of n letters."""
        n = x.shape[1]
        before = functional.pad(x, (0, 0, self.reach, 0))[:, :-1]
        windows = before.unfold(1, self.reach, 1)
        seen = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        scores = self.head(self.encoder(self.stem(windows.flatten(2)), seen[None]))
        with autocast(x.device, False):
            log_q = self.bigram.log_conditionals(x, ends=False)
            start = log_q if self.counts is None else self.counts(log_q.exp(), codes_of(x)).log()
            return log_q, torch.log_softmax(start + scores.to(x.dtype), 2)
