"""A law of texts in which each letter depends on the one before: the base of energies of text.

A text of at most L letters is a row of L codes, one-hot over K states (B, L, K). State 0 is the end, and all that
follows it; 1 … K - 1 are letters. Then with s the start of a text

    q(x) = p(x_1 | s) prod_{i > 1} p(x_i | x_{i-1}),    p(0 | 0) = 1.

A text of L letters needs no end: it stops for want of room. So q sums to 1 over the texts of at most L letters.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.device import autocast
from thalweg.core.errors import UserError
from thalweg.energy.shape import check_rows, check_shape

FORBIDDEN = 100.0  # nats of a letter after the end: exp(-100) is 4e-44, and a chain cannot leave through it


class BigramEnergy(nn.Module):
    """E(x) = -log q(x) nats of texts, x one-hot (B, L, K), q a Markov chain of letters (Markov 1913; Shannon 1948).

    E is bilinear in neighbouring letters, so its gradient predicts the change of E by any other letter exactly. A
    letter after the end costs 100 nats: such states have no mass. `fit` counts pairs,

        p(b | a) = (n(a, b) + s p(b)) / (n(a) + s),    p(b) = (n(b) + 1) / (n + K),

    the mean under a Dirichlet prior of weight s around the frequencies of letters (MacKay & Peto 1995). Unfitted, every
    state has probability 1 / K.

    Args:
        shape: (L, K), K of 3 or more.
        smoothing: s, in letters.
    """

    log_first: Tensor
    log_next: Tensor
    fixed_buffers = ("log_first", "log_next")  # `training.state` keeps them once

    def __init__(self, *, shape: Sequence[int] = (4, 3), smoothing: float = 1.0):
        super().__init__()
        check.positive(smoothing=smoothing)
        check.finite(smoothing=smoothing)
        self.shape, self.smoothing = check_text_shape(shape), smoothing
        self.register_buffer("log_first", torch.full((self.num_states,), -math.log(self.num_states)))
        log_next = torch.full((self.num_states, self.num_states), -math.log(self.num_states))
        log_next[0] = -FORBIDDEN
        log_next[0, 0] = 0
        self.register_buffer("log_next", log_next)

    @property
    def num_states(self) -> int:
        """K."""
        return self.shape[1]

    @property
    def num_uniforms(self) -> int:
        """L: a number a letter."""
        return self.shape[0]

    def fit(self, x: Float[Tensor, "n l k"]) -> Self:
        """Count the pairs of training texts; UserError where a row is no text."""
        return self.fit_parts([x])

    def fit_parts(self, parts: Iterable[Float[Tensor, "n l k"]]) -> Self:
        """The same of parts of the training texts."""
        self.count(codes_of_texts(parts, self.shape))
        return self

    @torch.no_grad()
    def count(self, codes: Int[Tensor, "n l"]) -> None:
        """The same of their codes."""
        k = self.num_states
        first = codes[:, 0].bincount(minlength=k).double()
        pairs = (codes[:, :-1] * k + codes[:, 1:])[codes[:, :-1] > 0].bincount(minlength=k * k).view(k, k).double()
        counts = first + pairs.sum(0)
        share = (counts + 1) / (counts.sum() + k)
        weight = self.smoothing
        self.log_first.copy_(((first + weight * share) / (first.sum() + weight)).log())
        self.log_next[1:] = ((pairs + weight * share) / (pairs.sum(1, keepdim=True) + weight)).log()[1:].to(share)

    def log_conditionals(self, x: Float[Tensor, "b n k"], *, ends: bool = True) -> Float[Tensor, "b n k"]:
        """log q of every state of a unit, given the unit before.

        Without `ends` a text begins anew after its end: for what looks at letters alone, whose gradient the 100 nats of
        a letter after the end would hide.
        """
        first, table = self.log_first.to(x.dtype), self.log_next.to(x.dtype)
        table = table if ends else torch.cat([first[None], table[1:]])
        return torch.cat([first.expand(len(x), 1, -1), x[:, :-1] @ table], 1)

    def forward(self, x: Float[Tensor, "b l k"]) -> Float[Tensor, " b"]:
        """E(x) in nats, in full precision; smooth between the states too. Tables are taken in x's precision."""
        check_rows(x, self.shape)
        with autocast(x.device, False):  # bfloat16 would round each term by 0.4 %, and q would not sum to 1
            return -(self.log_conditionals(x) * x).sum((1, 2))

    def base_energy(self, x: Float[Tensor, "b l k"]) -> Float[Tensor, " b"]:
        """-log q(x): the energy itself."""
        return self(x)

    def base_draws(self, uniforms: Float[Tensor, "n l"]) -> Float[Tensor, "n l k"]:
        """Exact draws, a letter a step, by the inverse of the cumulative distribution."""
        check_uniforms(uniforms, self.num_uniforms)
        tables = torch.cat([self.log_next, self.log_first[None]]).to(uniforms.dtype)
        below = tables.exp().cumsum(1)[:, :-1]  # the last state takes what rounding leaves
        states = torch.arange(self.num_states, device=uniforms.device)
        code, codes = torch.full(uniforms.shape[:1], self.num_states, device=uniforms.device), []
        for u in uniforms.unbind(1):
            code = (u[:, None] >= below[code]).sum(1)
            codes.append(code)
        return (torch.stack(codes, 1)[:, :, None] == states).to(uniforms.dtype)

    def allowed(self, x: Float[Tensor, "b l k"]) -> Bool[Tensor, "b l k"]:
        """The states that a unit may be in while the others stay, so that the row remains a text."""
        return allowed_letters(codes_of(x), self.num_states)


def codes_of(x: Float[Tensor, "b l k"]) -> Int[Tensor, "b l"]:
    """The states of one-hot rows as whole numbers."""
    return x.argmax(-1)


def codes_of_texts(parts: Iterable[Float[Tensor, "n l k"]], shape: tuple[int, int]) -> Int[Tensor, "n l"]:
    """The codes of all parts together; UserError where a row is no text, or there is none."""
    found = []
    for part in parts:
        check_rows(part, shape)
        require_texts(part)
        found.append(codes_of(part))
    if not found:
        raise UserError("must have one text or more", argument="x")
    return torch.cat(found)


def inside(codes: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Which units are letters before the first end."""
    return (codes == 0).cumsum(1) == 0


def allowed_letters(codes: Int[Tensor, "b l"], num_states: int) -> Bool[Tensor, "b l k"]:
    """Of texts: a letter may be any other, the last one the end too; the first end any letter; the rest stays."""
    letters = inside(codes)
    before = torch.nn.functional.pad(letters, (1, 0), value=True)[:, :-1]  # the unit before is a letter
    after = torch.nn.functional.pad(letters, (0, 1), value=False)[:, 1:]
    letter = before[:, :, None].expand(-1, -1, num_states - 1)
    return torch.cat([~after[:, :, None], letter], 2)


def check_uniforms(uniforms: Tensor, num: int) -> None:
    """UserError unless they are (n, num)."""
    if uniforms.ndim != 2 or uniforms.shape[1] != num:
        text = f"must have the shape (n, {num}); it has {tuple(uniforms.shape)}"
        raise UserError(text, argument="uniforms")


def check_text_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(L, K); UserError unless K is 3 or more."""
    length, num_states = check_shape(shape, "LK")
    if num_states < 3:
        text = "must have K of 3 or more: an end and two letters"
        raise UserError(text, argument="shape", value=shape, hint="take an energy of two states")
    return length, num_states


def require_texts(x: Float[Tensor, "n l k"]) -> None:
    """UserError unless every row is one-hot, with nothing but ends after the first end."""
    codes = codes_of(x)
    good = ((x == 0) | (x == 1)).all() & (x.sum(-1) == 1).all() & ~((codes > 0) & ~inside(codes)).any()
    if not len(x) or not bool(good):
        hint = "encode them by thalweg.data.alphabet:Alphabet"
        raise UserError("must be texts, one-hot, with state 0 from the end on", argument="x", hint=hint)
