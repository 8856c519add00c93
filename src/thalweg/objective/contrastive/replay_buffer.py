"""The replay buffer: persistent chains, each in a slot of its own.

Persistent contrastive divergence continues a chain where the last step left it (Tieleman 2008). A buffer has many more
chains than a batch uses, and restarts a few at each visit, which finds new modes (Du & Mordatch 2019). A chain is
written back to its own slot; otherwise chains would be lost and duplicated.

All functions are pure and give a new `Replay`, so that a bad step can be dropped. An update copies the buffer: 10,000
images of 28 x 28 in float32 are 31 MB, 20 ms on one core.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from thalweg.core.errors import UserError
from thalweg.objective.contrastive import starts
from thalweg.objective.contrastive.starts import StartLaw
from thalweg.sampler.base import normal_like, per_row

Initial = Literal["uniform", "normal", "mixture"]


class Replay(NamedTuple):
    """N chains: positions (N, *), ages (N,) in sampler steps since each began, labels (N,), -1 for none.

    The state of contrastive divergence. `finite_differences`: whether its gradient penalty is differentiated by these.
    `law`: where new chains begin, if that was fitted to the data; else empty.
    """

    x: Tensor
    age: Tensor
    labels: Tensor
    finite_differences: bool = False
    law: StartLaw | tuple[()] = ()


class Visit(NamedTuple):
    """The chains of a step: slots (B,), which are restarted (B,), and their new x (B, *) and labels (B,)."""

    slots: Int[Tensor, " b"]
    renew: Bool[Tensor, " b"]
    x: Float[Tensor, "b *d"]
    labels: Int[Tensor, " b"]


def fresh(
    n: int,
    like: Float[Tensor, "b *d"],
    generator: Generator,
    *,
    initial: Initial,
    low: float,
    high: float,
    law: StartLaw | tuple[()] = (),
) -> Float[Tensor, "n *d"]:
    """n starts: uniform on [low, high], normal with each coordinate's mean and deviation in `like`, or draws of `law`.

    Images of the law are clamped to [low, high].
    """
    if initial == "mixture":
        assert isinstance(law, StartLaw)  # which `init` has fitted
        x = starts.draw(law, n, tuple(like.shape[1:]), generator).to(like)
        return x.clamp(low, high) if like.ndim == 4 else x
    shape = like.new_empty(()).expand(n, *like.shape[1:])
    if initial == "normal":
        deviation, mean = torch.std_mean(like, dim=0, correction=0)
        return mean + deviation * normal_like(shape, generator)
    u = torch.rand(shape.shape, generator=generator, dtype=like.dtype, device=like.device)
    return low + (high - low) * u


def no_labels(n: int, device: torch.device) -> Int[Tensor, " n"]:
    """n labels of -1: none yet."""
    return torch.full((n,), -1, dtype=torch.int64, device=device)


def start(x: Float[Tensor, "n *d"]) -> Replay:
    """A buffer of chains that begin at x, of age 0 and without labels."""
    return Replay(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), no_labels(len(x), x.device))


def choose(replay: Replay, n: int, generator: Generator) -> Int[Tensor, " n"]:
    """n distinct slots, each set equally likely; UserError where the buffer has fewer."""
    size = len(replay.age)
    if n > size:
        raise UserError(f"must be at least the batch size, {n}", argument="buffer_size", value=size)
    return torch.randperm(size, generator=generator, device=replay.x.device)[:n]


def choose_keyed(replay: Replay, labels: Int[Tensor, " b"], generator: Generator) -> Int[Tensor, " b"]:
    """Distinct slots, for each label a chain with that label, all equally likely.

    Where a class has too few chains, the others are chains without a label, then any: they have another label than
    asked for, and must be restarted. UserError where the buffer has fewer than `labels`.
    """
    order = choose(replay, max(len(replay.age), len(labels)), generator)
    stored, by_label = replay.labels[order].sort(stable=True)  # no mask is read back, so that a device need not wait
    place = torch.searchsorted(stored, labels) + _number_within(labels)
    found = place < torch.searchsorted(stored, labels, right=True)
    at = by_label[place.clamp(max=len(order) - 1)]
    used = torch.zeros_like(order).scatter_reduce(0, at, found.long(), "amax")
    others = order[torch.argsort(2 * used + (replay.labels[order] >= 0), stable=True)]
    return torch.where(found, order[at], others[(~found).cumsum(0).sub(1).clamp(min=0)])


def _number_within(labels: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """For each row the number of rows before it that have its label."""
    ordered, rows = labels.sort(stable=True)
    number = torch.arange(len(labels), device=labels.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(number).scatter(0, rows, number)


def take(replay: Replay, visit: Visit, found: Float[Tensor, "b *d"] | None = None) -> Replay:
    """The visited chains (B), at the positions `found` if given; those to renew are at their new ones, at age 0."""
    keep = ~visit.renew
    stored = replay.x[visit.slots] if found is None else found
    return Replay(
        torch.where(per_row(keep, visit.x), stored, visit.x),
        torch.where(keep, replay.age[visit.slots], 0),
        torch.where(keep, replay.labels[visit.slots], visit.labels),
    )


def restart_diverged(chains: Replay, visit: Visit, finite: Bool[Tensor, " b"]) -> Replay:
    """The chains, those that are not finite restarted at the visit's new positions; the others unchanged."""
    return Replay(
        torch.where(per_row(finite, visit.x), chains.x, visit.x),
        torch.where(finite, chains.age, 0),
        torch.where(finite, chains.labels, visit.labels),
    )


def put(replay: Replay, visit: Visit, chains: Replay) -> Replay:
    """The buffer with each chain written to the slot it came from."""
    pairs = zip(replay[:3], chains[:3], strict=True)
    x, age, labels = (old.index_copy(0, visit.slots, new) for old, new in pairs)
    return replay._replace(x=x, age=age, labels=labels)
