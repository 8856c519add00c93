"""Columns of numbers that count the rows or give the time: a later table has other values in them.

Independent rows come in any order, and whole numbers among them repeat. So a column that runs through the file in even
steps, or has no repeats where a measurement would, is no measurement. These columns are left out:

1. a first column without a name, or pandas' own, of different whole numbers or of steps of one;
2. whole numbers that change by the same step from row to row;
3. whole numbers of which none comes twice though n (n - 1) / (2 R) >= 10, R the possible values between the least and
   the greatest, in units of their common divisor: of n draws of any law on R values so many pairs are equal in the
   mean, or more, so that none is has a chance of e^-10 (the birthday problem). Or all different, with "id" in the name.

A column that is likely a time is refused, and the user decides: dates written as numbers (20240131), times since 1970,
and numbers that rise or fall from row to row in steps more even than those of any sorted sample.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 10  # rows from which on a pattern is no accident
PAIRS = 10.0  # equal pairs to be expected
UNNAMED = re.compile(r"|Unnamed: \d+([._]\w+)*|__index_level_\d+__")  # an index without a name, as pandas writes it
_ID = re.compile(r"(?:^|[^a-z])(?:ids?|index|idx|uuid|guid|serial|seq|sequence|row|rowid|rownum)(?:$|[^a-z])")
_TIME = re.compile(r"(?:^|[^a-z])(?:time|timestamp|datetime|date|epoch|unix|utc|ts|created|updated)(?:$|[^a-z])")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
UNITS = {1.0: "seconds", 1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}
SINCE = (946_684_800.0, 4_102_444_800.0)  # the years 2000 to 2099, in seconds since 1970
_CALENDAR = {6: "month", 8: "day", 12: "minute", 14: "second"}  # digits of 202401, 20240131, …


class Verdict(NamedTuple):
    """What to do with a column: `action` "leave", "refuse" or "warn", and the reason, to follow its name."""

    action: str
    why: str


def verdict(values: np.ndarray, name: str, rows: Sequence[int], *, first: bool = False) -> Verdict | None:
    """The verdict on a column that counts rows or gives the time; None for a measurement.

    Args:
        values: The numbers (N,), NaN where one is missing.
        name: The name of the column.
        rows: The number of each row in its table, rising.
        first: Whether no column with a name stands before it.
    """
    there = np.isfinite(values)
    x, at = values[there], np.asarray(rows, float)[there]
    whole = bool((x == np.floor(x)).all())
    different = len(np.unique(x)) == len(x)
    steps = np.diff(x)
    if (
        (first or name.startswith("__index"))
        and whole
        and len(x)
        and UNNAMED.fullmatch(name)
        and (different or np.mean(steps == 1) >= 0.9)
    ):
        return Verdict("leave", "is an index without a name, which numbers the rows")
    if len(x) < LEAST or x.min() == x.max():
        return None
    return _counts_rows(x, at, name, whole, different) or _gives_time(x, name, whole) or _is_monotone(x, at, different)


def _counts_rows(x: np.ndarray, at: np.ndarray, name: str, whole: bool, different: bool) -> Verdict | None:
    if not whole or not different:
        return None
    step = (x[-1] - x[0]) / (at[-1] - at[0])
    if (x == x[0] + step * (at - at[0])).all():
        return Verdict("leave", f"counts the rows, in steps of {step:.6g}")
    if _ID.search(_lower(name)):
        return Verdict("leave", "holds another number in each row, as an id does")
    if np.abs(x).max() < 2**53:
        apart = np.diff(np.sort(x)).astype(np.int64)
        possible = apart.sum() / np.gcd.reduce(apart) + 1
        if len(x) * (len(x) - 1) / (2 * possible) >= PAIRS:
            return Verdict("leave", "holds another whole number in each row, where measurements would repeat")
    return None


def _gives_time(x: np.ndarray, name: str, whole: bool) -> Verdict | None:
    digits = _CALENDAR.get(len(f"{x.max():.0f}")) if whole and x.min() >= 1e5 else None
    if digits and _is_calendar(x) and (len(np.unique(x)) >= 5 or digits != "month" or _TIME.search(_lower(name))):
        return Verdict("refuse", f"holds dates as numbers, such as {x[0]:.0f}")
    for scale, unit in UNITS.items():
        if (x >= SINCE[0] * scale).all() and (x < SINCE[1] * scale).all():
            steps = np.diff(x)
            ordered = max(np.mean(steps >= 0), np.mean(steps <= 0)) >= 0.9
            minutes = np.mean(x % (60 * scale) == 0) >= 0.9
            sure = ordered or minutes or _TIME.search(_lower(name)) is not None
            return Verdict("refuse" if sure else "warn", f"holds times since 1970 in {unit}, such as {x[0]:.0f}")
    return None


def _is_calendar(x: np.ndarray) -> bool:
    """Whether all are a year, a month and so on, written as one number, from 1900 to 2099."""
    texts = np.array([f"{value:.0f}" for value in np.unique(x)])
    if len({len(text) for text in texts}) > 1:
        return False
    limits = ((0, 4, 1900, 2099), (4, 6, 1, 12), (6, 8, 1, 31), (8, 10, 0, 23), (10, 12, 0, 59), (12, 14, 0, 59))
    used = [limit for limit in limits if limit[1] <= len(texts[0])]
    return all(low <= int(text[a:b]) <= high for text in texts for a, b, low, high in used)


def _is_monotone(x: np.ndarray, at: np.ndarray, different: bool) -> Verdict | None:
    """The verdict on numbers that only rise, or only fall, from row to row."""
    steps = np.diff(x)
    if not ((steps >= 0).all() or (steps <= 0).all()):
        return None
    way = "rises" if x[-1] > x[0] else "falls"
    rate = np.abs(steps) / np.diff(at)
    if different and rate.std() < max(1e-6, 1 - 4 / np.sqrt(len(rate))) * rate.mean():
        # Steps between the sorted values of a sample spread by their mean or more (by the mean where it is uniform).
        return Verdict("refuse", f"{way} from row to row in even steps, as a time does")
    places = np.flatnonzero(steps)
    blocks = np.diff(places)
    if len(blocks) >= LEAST and (blocks == blocks[0]).all() and np.ptp(np.abs(steps[places])) == 0:
        return Verdict("refuse", f"{way} by the same step every {blocks[0]} rows, as a time does")
    if len(places) >= LEAST:
        return Verdict("warn", f"only {way} from row to row: if it counts rows or gives the time, leave it out")
    return None


def _lower(name: str) -> str:
    """A name in lower case, its words parted: `orderId` is `order id`."""
    return _CAMEL.sub(" ", name).lower()
