"""Rows that cannot be scored: the first is an error, or all are kept apart, with the reason of each."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thalweg.core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

NAMED = 100  # rows that are named with their reasons, of a file or of a part of the output; the others are counted


class BadRows:
    """What becomes of rows that cannot be scored, and why they cannot.

    Args:
        skip: Whether they are kept apart. Else the first is a UserError that says so, `skippable`.
    """

    def __init__(self, *, skip: bool):
        self.skip = skip
        self.reasons: dict[int, str] = {}  # by the row's number in the file, from 0: the first fault of each

    def refuse(self, error: UserError, row: int, reason: str) -> None:
        """A row of the file has a fault: raise the error, or note the reason."""
        if not self.skip:
            raise error.replace(skippable=True)
        self.reasons.setdefault(row, reason)

    def usable(self, first: int, rows: int) -> np.ndarray:
        """Which of the rows first, first + 1, … of the file have no fault, (rows,)."""
        good = np.ones(rows, bool)
        good[[row - first for row in self.reasons]] = False
        return good


class LeftOutRows(NamedTuple):
    """Rows of a file without a score.

    Args:
        num: How many.
        first: The first of them, (number from 0, reason) each, at most `NAMED`.
    """

    num: int = 0
    first: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, reasons: Iterable[tuple[int, str]]) -> "LeftOutRows":
        """Those rows, in the order of their numbers."""
        found = sorted(reasons)
        return cls(len(found), tuple(found[:NAMED]))

    def followed_by(self, later: "LeftOutRows") -> "LeftOutRows":
        """These and some that come later in the file."""
        return LeftOutRows(self.num + later.num, (*self.first, *later.first)[:NAMED])


def with_empty_rows(scores: "pa.Table", good: np.ndarray) -> "pa.Table":
    """A table of the rows that are `good` (N,) as one of N rows, empty where they are not."""
    import pyarrow as pa

    if good.all():
        return scores
    return scores.take(pa.array(np.cumsum(good) - 1, mask=~good))
