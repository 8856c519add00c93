"""Tell texts from the same texts with one edit: conditional noise-contrastive estimation.

For each text x a noise text x' is drawn near it, from a law r(x' | x). With the log-odds

    G(x, x') = E(x') - E(x) + log r(x' | x) - log r(x | x')

the loss mean log(1 + exp(-G)) is least where exp(-E) is the data's law up to a constant (Ceylan & Gutmann 2018).
Pseudo-likelihood compares texts that differ in one unit; here letters are also put in, taken out and exchanged, which
moves all units behind them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import softplus

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Discrete, EnergyFn, lacking
from thalweg.objective.base import Batch, Empty, Stateless


@dataclass(frozen=True, kw_only=True)
class EditContrast(Stateless):
    """mean over rows and edits of softplus(-G), in nats an edit, for texts one-hot (B, L, K), state 0 from the end on.

    An edit is, with probability 1 / 4 each: another letter in place of one; a letter put in; one taken out; two
    neighbours exchanged. Place and letter are uniform, the letter among all K - 1. So r is symmetric, but for a letter
    put in or out: r(x' | x) / r(x | x') is 1 / (K - 1) for one put in, K - 1 for one taken out. An edit that changes
    nothing, or for which there is no room, is left out of the mean. Costs 1 + num_edits energies a row.

    Args:
        num_edits: Edited texts a row.
    """

    num_edits: int = 1

    def __post_init__(self):
        check.count(num_edits=self.num_edits)

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor]:
        """(v (B M, 3),): uniform numbers for kind, place and letter."""
        size = (self.num_edits * len(batch.x), 3)
        return (torch.rand(size, generator=generator, device=generator.device).to(batch.x.device),)

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The mean; UserError for an energy that is not `Discrete` with K of 3 or more states."""
        (v,) = noise
        if not isinstance(energy, Discrete) or energy.num_states < 3:
            text = f"must be of texts, with three states or more; {lacking(energy, Discrete)}"
            raise UserError(text, argument="energy")
        codes = batch.x.argmax(-1)
        changed, log_ratio = edited(codes.repeat_interleave(self.num_edits, 0), energy.num_states, v)
        states = torch.arange(energy.num_states, device=codes.device)
        y = (changed[:, :, None] == states).to(batch.x.dtype)
        u, u_edited = energy(torch.cat([batch.x, y])).split([len(codes), len(changed)])
        rise = u_edited - u.repeat_interleave(self.num_edits)
        counts = (changed != codes.repeat_interleave(self.num_edits, 0)).any(1)
        loss = (softplus(-(rise + log_ratio)) * counts).sum() / counts.sum().clamp(min=1)
        accuracy = ((rise.detach() > 0) & counts).sum() / counts.sum().clamp(min=1)
        return loss, state, {"energy": u.detach().mean(), "edit_surprise": loss.detach(), "edit_accuracy": accuracy}


def edited(
    codes: Int[Tensor, "b l"], num_states: int, v: Float[Tensor, "b 3"]
) -> tuple[Int[Tensor, "b l"], Float[Tensor, " b"]]:
    """(texts with one edit each, log r(x' | x) - log r(x | x')), by uniform numbers v for kind, place and letter."""
    n = (codes > 0).sum(1)
    kind, letter = (4 * v[:, 0]).long(), 1 + ((num_states - 1) * v[:, 2]).long()
    unit = torch.arange(codes.shape[1], device=codes.device)
    letter = letter[:, None]

    def place(count: Tensor) -> Tensor:  # a whole number in [0, count), (B, 1)
        return torch.minimum((v[:, 1] * count).long(), count - 1).clamp(min=0)[:, None]

    inner, gap, pair = place(n), place(n + 1), place(n - 1)
    later, earlier = codes.roll(1, 1), torch.cat([codes[:, 1:], torch.zeros_like(codes[:, :1])], 1)
    other = torch.where(unit == inner, letter, codes)
    longer = torch.where(unit < gap, codes, torch.where(unit == gap, letter, later))
    shorter = torch.where(unit < inner, codes, earlier)
    swapped = torch.where(unit == pair, earlier, torch.where(unit == pair + 1, later, codes))
    room = (n < codes.shape[1])[:, None], (n > 0)[:, None], (n > 1)[:, None]
    choices = [(room[1], other), (room[0], longer), (room[1], shorter), (room[2], swapped)]
    out = codes
    for number, (possible, text) in enumerate(choices):
        out = torch.where((kind[:, None] == number) & possible, text, out)
    sign = (kind == 2).to(v.dtype) - (kind == 1).to(v.dtype)
    return out, math.log(num_states - 1) * sign
