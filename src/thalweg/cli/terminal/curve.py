"""A curve in one line of text."""

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
NOT_FINITE = "x"


def curve(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """At most `width` characters, each the mean of as many values, from the lowest to the highest; x: not finite.

    The first fifth may leave the range, and is cut there, since first steps are wild.
    """
    marks = LETTERS if ascii_only else BLOCKS
    means = _means(values, width)
    late = [value for value in means[len(means) // 5 :] if math.isfinite(value)]
    if not late:
        return NOT_FINITE * len(means)
    low, high = min(late), max(late)
    return "".join(_mark(value, low, high, marks) if math.isfinite(value) else NOT_FINITE for value in means)


def _means(values: Sequence[float], width: int) -> list[float]:
    number = min(width, len(values))
    ends = [len(values) * i // number for i in range(number + 1)] if number > 0 else []
    parts = [values[a:b] for a, b in pairwise(ends)]
    return [sum(part) / len(part) for part in parts]


def _mark(value: float, low: float, high: float, marks: str) -> str:
    if high <= low:
        return marks[len(marks) // 2 - 1]
    share = (value - low) / (high - low)
    return marks[min(max(int(share * len(marks)), 0), len(marks) - 1)]
