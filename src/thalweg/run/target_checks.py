"""Whether the last columns of rows are what a conditional energy takes for y."""

from typing import Any

import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.data.catalog import Dataset
from thalweg.data.transform import Identity
from thalweg.energy.outcomes import Binary, Conditional
from thalweg.training.settings import RunSettings

PART = 4096  # rows that are checked at a time
MOST_CLASSES = 1000  # that a column of whole numbers is taken for, rather than for a quantity


def check_targets(energy: Any, transform: Any, run: RunSettings, data: Dataset) -> None:
    """UserError unless the last columns are outcomes of the energy's, where it has any, and those that are named."""
    named = run.data.targets
    if not isinstance(energy, Conditional):
        if named:
            text, hint = "must be none, as the energy is none of y given x", "take --recipe conditional-labels"
            raise UserError(text, argument="data.targets", value=named, hint=hint)
        return
    if not isinstance(transform, Identity):
        text, hint = "must be Identity for an energy of y given x, as y would be altered", "leave it out"
        raise UserError(text, argument="transform", value=run.transform["type"], hint=hint)
    outcomes = energy.outcomes
    if named and len(named) != outcomes.columns:
        text = f"must be {outcomes.columns}, as many as the energy's targets"
        raise UserError(text, argument="data.targets", value=named)
    first = data.shape[0] - outcomes.columns
    targets = [rows[:, first:] for rows in (*data.train.split(PART), data.held_out)]
    if isinstance(outcomes, Binary):
        _require_binary(torch.cat(targets), first, run, data)
    for part in targets:
        outcomes.check_columns(part, f"targets of {data.name}")


def _require_binary(y: Tensor, first: int, run: RunSettings, data: Dataset) -> None:
    """UserError, with the column and what it may be instead, for labels y (N, K) that are not 0 or 1.

    The rows have been shuffled, so the message says how many there are and not which.
    """
    outside = (y != 0) & (y != 1)
    if not bool(outside.any()):
        return
    i = int(outside.any(0).nonzero()[0])
    column, bad = y[:, i], outside[:, i]
    names = data.layout.names
    name = str(first + i + 1) if names is None else repr(names[i - y.shape[1]])
    which = f"column {name}" if run.data.targets else f"column {name}, which is taken as it is among the last,"
    text = f"must be 0 or 1, and {which} is {float(column[bad][0]):g} in {int(bad.sum()):,} of {len(y):,} rows"
    raise UserError(text, argument=f"targets of {data.name}", hint=_remedy(column, y, run))


def _remedy(column: Tensor, y: Tensor, run: RunSettings) -> str:
    """What to add, for labels (N,) that are not binary: they may be classes, or another column be meant."""
    hints = [] if run.data.targets else ["name the columns of labels by data.targets=[NAME]"]
    whole = bool((column == column.round()).all()) and float(column.min()) >= 0 and float(column.max()) < MOST_CLASSES
    if whole and y.shape[1] == 1:
        hints.append(f"for classes from 0 add energy.num_classes={int(column.max()) + 1}")
    return ", or ".join(hints) or "make it 0 and 1, or name other columns"
