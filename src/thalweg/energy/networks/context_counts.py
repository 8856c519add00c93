"""Counts of what follows a few letters, in tables of a fixed size: an n-gram law for a network to start from.

    p_c(b | h) = (n(h b) + s_c p_{c-1}(b | h')) / (n(h) + s_c)

h are the c letters before, h' the last c - 1 of them (Witten-Bell's form; MacKay & Peto 1995). The weights s_c are
parameters. Where there are too many contexts for a table, it has the most frequent ones. Counts are 16-bit whole
numbers; a row with a larger one is scaled down to them, which keeps its proportions.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thalweg.core.errors import UserError

NONE = torch.iinfo(torch.int64).max  # the key of an empty row
NUMBERS = 1 << 22  # most counts of a table, 8 MB
MOST = torch.iinfo(torch.int16).max  # the largest count


def longest_context(num_states: int) -> int:
    """The most letters of a context whose number, in base K + 1, fits 63 bits."""
    return next(c for c in range(63, 0, -1) if (num_states + 1) ** c <= NONE)


class ContextCounts(nn.Module):
    """p(. | the letters before), of contexts of 2 to `longest` letters over a law of one.

    In training mode each text is left out of its own counts. A text that was counted has been seen after its own
    letters, and a new one has not: what is learned beside the counts must not rely on it.

    Args:
        num_states: K.
        longest: Letters of the longest context, 2 or more.
        slots: Most rows of a table; of a large K fewer, so that a table has at most 2**22 counts.

    Raises:
        UserError: The contexts are too long to be numbered in 63 bits.
    """

    def __init__(self, num_states: int, longest: int, slots: int):
        super().__init__()
        self.fixed_buffers = [f"{kind}{c}" for c in range(2, longest + 1) for kind in ("keys", "counts")]
        self.num_states, self.contexts = num_states, range(2, longest + 1)
        if longest > longest_context(num_states):
            text = f"must be at most {longest_context(num_states)}: longer contexts have no number in 63 bits"
            raise UserError(text, argument="context", value=longest)
        for c in self.contexts:
            rows = min(slots, (num_states + 1) ** c, max(1, NUMBERS // num_states))
            self.register_buffer(f"keys{c}", torch.full((rows,), NONE))
            self.register_buffer(f"counts{c}", torch.zeros(rows, num_states, dtype=torch.int16))
        self.log_weight = nn.Parameter(torch.full((len(self.contexts),), math.log(4.0)))

    @torch.no_grad()
    def fit(self, codes: Int[Tensor, "b l"]) -> None:
        """Count the letters, and the first end, of training texts."""
        tokens = functional.pad((codes == 0).cumsum(1) == 0, (1, 0), value=True)[:, :-1]
        for c in self.contexts:
            keys, table = self.get_buffer(f"keys{c}"), self.get_buffer(f"counts{c}")
            own, where, times = self._keys(codes, c)[tokens].unique(return_inverse=True, return_counts=True)
            kept = times.argsort(descending=True, stable=True)[: len(keys)].sort().values  # in the order of keys
            keys.fill_(NONE)[: len(kept)] = own[kept]
            place = torch.full_like(own, len(keys)).index_copy(0, kept, torch.arange(len(kept), device=own.device))
            pairs = place[where] * self.num_states + codes[tokens]
            counts = pairs[place[where] < len(keys)].bincount(minlength=table.numel()).view_as(table)
            table.copy_(_scaled(counts))

    def forward(self, p: Float[Tensor, "b n k"], codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n k"]:
        """p(. | the longest context), from the law p of one letter."""
        own = (codes[:, :, None] == torch.arange(self.num_states, device=codes.device)).to(p.dtype)
        for c, log_weight in zip(self.contexts, self.log_weight.unbind(), strict=True):
            keys, wanted = self.get_buffer(f"keys{c}"), self._keys(codes, c)
            row = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            counts = self.get_buffer(f"counts{c}")[row].to(p.dtype) * (keys[row] == wanted)[:, :, None]
            counts = (counts - own).clamp(min=0) if self.training else counts
            weight = log_weight.exp()
            p = (counts + weight * p) / (counts.sum(2, keepdim=True) + weight)
        return p

    def _keys(self, codes: Int[Tensor, "b n"], c: int) -> Int[Tensor, "b n"]:
        """A number for the c letters before each, in base K + 1; before a text there is state K."""
        before = functional.pad(codes, (c, 0), value=self.num_states)[:, :-1].unfold(1, c, 1)
        key = torch.zeros_like(codes)
        for letter in before.unbind(2):
            key = key * (self.num_states + 1) + letter
        return key


def _scaled(counts: Int[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """Rows whose largest count is at most MOST, each in proportion; one that has occurred does not become 0."""
    large = counts.amax(1) > MOST
    rows = counts[large]
    scaled = (rows.double() * (MOST / rows.amax(1, keepdim=True))).round().to(counts.dtype)
    return counts.index_put((large,), scaled.maximum(rows.clamp(max=1)))
