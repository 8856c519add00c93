"""What happened in steps on a device that the host does not wait for.

On a GPU the host gives work ahead, and a value that it reads makes it wait. So a step that is not finite is masked on
the device itself: weights, optimiser, average and the objective's state stay as they were. What happened is noted in
tensors there, which the guard reads once in `log_every` steps (`thalweg.training.guard`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from thalweg.core.device import send
from thalweg.core.state_tree import mapped

CAUSES = ("gradient", "loss", "data")  # of a masked step, by number from 1; what comes first in a step counts most


class Notes(NamedTuple):
    """0-d tensors in float64, since the last reading; the two counts in a row go on across readings."""

    skips: Tensor  # masked steps in a row
    strikes: Tensor  # steps in a row beyond a limit; both negative for a while after a warning
    masked: Tensor  # number of masked steps
    first: Tensor  # the first of them that no masked step precedes, 0 for none
    cause: Tensor  # its cause, a number as of `CAUSES`
    latest: Tensor  # the cause of the latest step, 0 if that was not masked
    end: Tensor  # the first step at which bad steps in a row were as many as the patience, 0 for none
    reason: Tensor  # its cause, or minus the number from 1 of the limit
    value: Tensor  # the signal's, without its sign; -1 where that is not finite

    @classmethod
    def begin(cls, skips: int, strikes: int, device: torch.device) -> Self:
        """Nothing noted yet, after so many bad steps in a row."""
        given = {"dtype": torch.float64, "device": device}
        zeros = (torch.zeros((), **given) for _ in range(7))
        return cls(torch.full((), skips, **given), torch.full((), strikes, **given), *zeros)

    def to(self, device: torch.device) -> Self:
        """The notes on a device."""
        return type(self)(*(send(value, device) for value in self))


class Bounds(NamedTuple):
    """Limits on the absolute values of signals, each as sign * |signal| <= sign * bound."""

    signals: Sequence[str]
    numbers: Tensor  # (L,), of each limit, from 1
    signs: Tensor  # (L,)
    bounds: Tensor  # (L,), times the sign


def cause_of(data: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
    """The number of the first that is not finite, (), float64; 0 where all are."""
    found = torch.zeros((), dtype=torch.float64, device=loss.device)
    for number, value in enumerate((gradient, loss, data), 1):
        found = torch.where(value.isfinite().all(), found, number)
    return found


def add(
    notes: Notes, cause: Tensor, metrics: Mapping[str, Tensor], bounds: Bounds | None, step: int, patience: int
) -> Notes:
    """The notes after a step with this cause of masking, 0 for none, and these metrics."""
    bad = cause > 0
    beyond, number, value = _beyond(metrics, bounds, cause)
    skips = torch.where(bad, notes.skips + 1, 0)
    strikes = torch.where(beyond, notes.strikes + 1, (notes.strikes + 1).clamp(max=0))
    strikes = torch.where(bad, notes.strikes, strikes)
    first = bad & (skips == 1) & (notes.first == 0)
    end = torch.where(bad, skips >= patience, beyond & (strikes >= patience)) & (notes.end == 0)
    return Notes(
        skips=skips,
        strikes=strikes,
        masked=notes.masked + bad,
        first=torch.where(first, step, notes.first),
        cause=torch.where(first, cause, notes.cause),
        latest=cause,
        end=torch.where(end, step, notes.end),
        reason=torch.where(end, torch.where(bad, cause, -number), notes.reason),
        value=torch.where(end, value, notes.value),
    )


def _beyond(metrics: Mapping[str, Tensor], bounds: Bounds | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a signal is beyond its limit, and the first that is: its limit's number and its value."""
    if bounds is None:
        return torch.zeros_like(like, dtype=torch.bool), like, like
    values = torch.stack([metrics[name].double() for name in bounds.signals]).abs()
    outside = ~((values * bounds.signs <= bounds.bounds) & values.isfinite())
    number = torch.where(outside, bounds.numbers, torch.inf).min()
    value = torch.where(bounds.numbers == number, values, 0).sum()
    return outside.any(), number.nan_to_num(posinf=0.0), value.nan_to_num(nan=-1.0, posinf=-1.0)


def unless(bad: Tensor, before: Any, after: Any) -> Any:
    """The tree of tensors `after`, or `before` where `bad` () is true. What is the same object in both stays."""
    return mapped(lambda new, old: new if old is new else torch.where(bad, old, new), after, before)


def placed(tree: Any, like: Any) -> Any:
    """The tree of tensors, each on the device of that at its place in `like`."""
    return mapped(lambda mine, theirs: send(mine, theirs.device) if isinstance(mine, Tensor) else mine, tree, like)


def read(tensors: Sequence[Tensor]) -> list[float]:
    """The numbers of 0-d tensors, those on a device by one transfer."""
    there = [value.detach().double() for value in tensors if value.device.type != "cpu"]
    sent = iter(torch.stack(there).tolist() if there else ())
    return [float(value) if value.device.type == "cpu" else next(sent) for value in tensors]
