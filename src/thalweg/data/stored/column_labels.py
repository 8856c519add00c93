"""Labels from a column of the Hub: whole numbers as they are, others numbered in the order of their names."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.core.errors import ROW, UserError

LEAST = 2  # rows of a class: one to train on, one held out


def coded(values: Sequence[Any], where: str, names: Sequence[str] = ()) -> tuple[Tensor, tuple[str, ...]]:
    """(int64 (N,), the names of the classes 0, 1, …; none for whole numbers without names).

    UserError: a row without a label, fewer than two classes, a class with one row, numbers that are not whole.

    Args:
        values: A label a row.
        where: What messages call the column.
        names: Of the classes that whole numbers stand for.
    """
    counts = Counter(values)
    if None in counts:
        raise UserError(f"has no label in {ROW}", argument=where, hint="fill or drop it", row=[*values].index(None))
    if len(counts) < 2:
        only = next(iter(counts), "none")
        raise UserError(f"must give two classes or more, and gives {only!r} alone", argument=where)
    few = [value for value, n in counts.items() if n < LEAST]
    if few:
        what = f"must give each class {LEAST} rows or more, and gives {few[0]!r} one"
        raise UserError(what, argument=where, hint="add rows, or leave the class out")
    if all(isinstance(value, int) for value in counts):
        return torch.tensor([int(value) for value in values]), tuple(names)
    if not all(isinstance(value, str) for value in counts):
        other = next(value for value in counts if not isinstance(value, str))
        raise UserError("must hold whole numbers or names", argument=where, value=other, hint="name another column")
    order = sorted(counts)
    number = {name: i for i, name in enumerate(order)}
    return torch.tensor([number[value] for value in values]), tuple(order)
