"""Pseudo-likelihood: the product of the laws of single units given all others, which needs no constant and no chains.

    l(x) = -sum_i log p(x_i | x without i),    p(x_i | x without i) = exp(-E(x)) / sum_k exp(-E(x with x_i = k))

Its minimum over all energies is the data's law, up to the energy's constant (Besag 1975).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Constrained, Discrete, EnergyFn, lacking
from thalweg.objective.base import Batch


class Units(NamedTuple):
    """The state: `like` (M, K), zeros whose shape says how many units there are, and of how many states."""

    like: Tensor


@dataclass(frozen=True, kw_only=True)
class PseudoLikelihood:
    """mean l(x) in nats a row, of an energy of states (`Discrete`), two or K of them.

    The sum over the M units is estimated without bias on `num_units` of them a row: M / num_units times theirs. Units
    are spread evenly from a random start, so none comes twice. Of a `Constrained` energy, M counts the units that may
    change. Costs 1 + num_units (K - 1) energies a row.

    With `num_candidates` the sum over k runs over the observed state and so many others, drawn evenly without
    replacement: -log of the share of the observed one. That value is below l(x), its minimum the same: the draws are
    as likely from each state in the set, so no correction remains (ranking: Ma & Collins 2018, equation 3).

    Args:
        num_units: Units a row; None: all of them.
        num_candidates: Other states a unit; None: all K - 1.
    """

    num_units: int | None = 1
    num_candidates: int | None = None

    normalises = False  # the constant is left unknown
    noisy = False

    def __post_init__(self):
        if self.num_units is not None:
            check.count(num_units=self.num_units)
        if self.num_candidates is not None:
            check.count(num_candidates=self.num_candidates)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"], generator: Generator) -> Units:
        """What tells `draw` how many units and states there are; UserError for an energy that is not `Discrete`."""
        k = _discrete(energy).num_states
        return Units(x.new_zeros(x[0].numel() // (1 if k == 2 else k), k))

    def draw(self, state: Units, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, Tensor]:
        """(start (B,), keys (B, U, K)): uniform numbers that choose units and candidates; empty where all are taken."""
        x, (m, k) = batch.x, state.like.shape
        starts = (0,) if self.num_units is None else (len(x),)
        keys = (0,) if self.num_candidates is None else (len(x), self.num_units or m, k)
        start, key = (torch.rand(size, generator=generator, device=generator.device) for size in (starts, keys))
        return start.to(x.device), key.to(x.device)

    def loss(
        self, energy: EnergyFn, state: Units, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Units, dict[str, Tensor]]:
        """The mean over the rows."""
        start, keys = noise
        energy = _discrete(energy)
        x, k = batch.x, energy.num_states
        allowed = _allowed(energy, x)
        free = allowed.sum(2) > 1
        if self.num_units is None:
            chosen = torch.arange(free.shape[1], device=x.device).expand(len(x), -1)
            weight = x.new_ones(len(x))
        else:
            chosen, weight = _spread(free, start, self.num_units), free.sum(1) / self.num_units
        others, possible = _others(x, chosen, allowed, k, keys if self.num_candidates is not None else None)
        if self.num_candidates is not None and k > 2:
            others, possible = others[:, :, : self.num_candidates], possible[:, :, : self.num_candidates]
        own, u = energies_of_changes(energy, x, chosen, others, k)
        surprise = weight * unit_surprise(own, u.masked_fill(~possible, torch.inf)).sum(1)
        loss = surprise.mean()
        return loss, state, {"pseudo_surprise": loss.detach(), "energy": own.detach().mean()}


def unit_surprise(own: Float[Tensor, " b"], others: Float[Tensor, "b u c"]) -> Float[Tensor, "b u"]:
    """-log of exp(-own) / (exp(-own) + sum exp(-others)), nats: of a row's state among those that differ in a unit."""
    gap = own[:, None, None] - others
    return torch.logsumexp(functional.pad(gap, (1, 0)), -1)


def energies_of_changes(
    energy: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b *d"],
    units: Int[Tensor, "b u"],
    states: Int[Tensor, "b u c"],
    num_states: int,
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b u c"]]:
    """(E(x), E of x with one unit in another state): in one call, each row followed by its changes."""
    b, u, c = states.shape
    rows = x.reshape(b, 1, 1, -1, 1 if num_states == 2 else num_states)
    hit = (units[:, :, None] == torch.arange(rows.shape[3], device=x.device))[:, :, None, :, None]
    new = states[..., None]
    new = new if num_states == 2 else new == torch.arange(num_states, device=x.device)
    changed = torch.where(hit, new[:, :, :, None].to(x.dtype), rows)
    both = torch.cat([x.reshape(b, 1, *x.shape[1:]), changed.reshape(b, u * c, *x.shape[1:])], 1)
    found = energy(both.flatten(0, 1)).view(b, 1 + u * c)
    return found[:, 0], found[:, 1:].view(b, u, c)


def all_units_turned(energy: Callable[[Tensor], Tensor], y: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-sum_k log p(y_k | y without k) of binary units, (B,) nats; the energy gets each row, then its K changes."""
    units = torch.arange(y.shape[1], device=y.device).expand(len(y), -1)
    return unit_surprise(*energies_of_changes(energy, y, units, (1 - y.long())[:, :, None], 2)).sum(1)


def _discrete(energy: object) -> Discrete:
    if not isinstance(energy, Discrete):
        raise UserError(f"must be of states; {lacking(energy, Discrete)}", argument="energy")
    return energy


def _allowed(energy: Discrete, x: Tensor) -> Tensor:
    """(B, M, K), bool."""
    if isinstance(energy, Constrained):
        return energy.allowed(x)
    k = energy.num_states
    return torch.ones(len(x), x[0].numel() // (1 if k == 2 else k), k, dtype=torch.bool, device=x.device)


def _spread(free: Tensor, start: Tensor, num: int) -> Int[Tensor, "b u"]:
    """Numbers of `num` free units a row, evenly spread from a random start: each as likely as any other."""
    count = free.sum(1, keepdim=True)
    steps = torch.arange(num, device=free.device)
    wanted = ((start[:, None] + steps) * count / num).long()
    wanted = torch.minimum(wanted, (count - 1).clamp(min=0))
    order = (~free).to(torch.uint8).argsort(dim=1, stable=True)  # free units first
    return order.gather(1, wanted)


def _others(x: Tensor, units: Tensor, allowed: Tensor, k: int, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """(states (B, U, K - 1) that a unit is not in, which of them it may be in); by falling keys, if there are."""
    own = x.flatten(1).long()[:, :, None] if k == 2 else x.reshape(len(x), -1, k).argmax(-1)[:, :, None]
    own = own.gather(1, units[:, :, None])
    possible = allowed.gather(1, units[:, :, None].expand(-1, -1, k))
    if keys is None or k == 2:
        states = (own + torch.arange(1, k, device=x.device)) % k
    else:
        keys = keys.masked_fill(~possible, -1.0).scatter(2, own, -2.0)
        states = keys.argsort(dim=2, descending=True)[:, :, : k - 1]
    return states, possible.gather(2, states)
