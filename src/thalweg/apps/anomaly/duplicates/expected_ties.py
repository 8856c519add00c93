"""How many equal rows independent draws explain: where values are few, rows are equal that nobody has copied.

Independent rows that agree in every feature come with rows that agree in all features but one, and with rows one step
of a grid away. These say how many equals of a row to expect; many rows with several times as many are copies.
"""

import math
from typing import NamedTuple

import numpy as np

UNEXPLAINED = 4.0  # times the expected equals, from which on a group of equal rows is taken for copies
LARGE = 20  # times the usual number of copies: such a group is a value of its own, as a row of zeros
SLACK = 3  # groups that may be unexplained in any table
GRID = 0.02  # the least share of a number's gaps that is one step, if its values are on a grid
MOST = 100  # indicators of one text
CERTAIN = 1e6  # odds against all counts being multiples of k by chance


def equal_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the group of each row, equal rows having one; and the groups' sizes. The first row of a group opens it."""
    rows = np.ascontiguousarray(x + 0.0 if x.dtype.kind == "f" else x)  # -0.0 is 0.0
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, group, counts = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    return np.argsort(order)[group], counts[order]


def times_repeated(counts: np.ndarray) -> int:
    """How often the whole table is there, 1 where counts may have a common divisor by chance."""
    k = int(np.gcd.reduce(counts))
    return k if k > 1 and (len(counts) - 1) * math.log(k) > math.log(CERTAIN) else 1


def unexplained(x: np.ndarray, features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of the distinct rows x (G, D), of which there are so many each, those whose equals are copies, (G,) bool.

    `features` (D,): the feature of each column. None are copies where a single column has few values, or where texts
    alone tell the rows apart: these repeat by nature.
    """
    coded = [_feature(x[:, features == j], counts, j) for j in range(features.max() + 1)]
    varied = [feature for feature in coded if len(feature.totals) > 1]
    if not varied or (len(varied) == 1 and len(x) <= 2 * math.sqrt(counts.sum())):
        return np.zeros(len(x), bool)
    needed = _needed(varied)
    if all(feature.is_text for feature in needed):
        return np.zeros(len(x), bool)
    expected = _expected(needed, counts)
    more = counts - 1 > UNEXPLAINED * expected.max(0)
    if more.any():
        more &= counts - 1 <= LARGE * np.median(counts[more] - 1)
    mean = np.maximum(expected.mean(0), 1e-9)
    by_chance = np.minimum(mean / -np.expm1(-mean) - 1, 1.0)  # E[M - 1 | M >= 1], M a Poisson number
    return more & bool(more.sum() > SLACK + 2 * by_chance.sum())


def features_of(x: np.ndarray) -> np.ndarray:
    """(D,) the feature of each column: its own, but for neighbouring columns of 0 and 1 of which each row has one 1."""
    owners, num = np.empty(x.shape[1], int), 0
    start = 0
    while start < x.shape[1]:
        width = _indicators(x[:, start : start + MOST])
        owners[start : start + width] = num
        start, num = start + width, num + 1
    return owners


def _indicators(x: np.ndarray) -> int:
    """How many of the columns, from the first on, are the indicators of one text; 1 where they are none."""
    total = np.zeros(len(x))
    for width, column in enumerate(x.T, 1):
        total = total + column
        if not np.isin(column, (0, 1)).all() or total.max() > 1:
            return 1
        if width > 1 and total.min() == 1:
            return width
    return 1


class _Feature(NamedTuple):
    """A feature of the distinct rows: `codes` (G,) of its values, `totals` (K,) rows that have each, `step` (K - 1,)
    whether the next value is one step of the grid away, `keys` (K,) random numbers, `is_text`.
    """

    codes: np.ndarray
    totals: np.ndarray
    step: np.ndarray
    keys: np.ndarray
    is_text: bool

    @property
    def key(self) -> np.ndarray:
        """(G,): their sum over features is a hash of a row."""
        return self.keys[self.codes]


def _feature(columns: np.ndarray, counts: np.ndarray, number: int) -> _Feature:
    is_text = columns.shape[1] > 1
    if is_text:
        codes = equal_rows(columns)[0]
        step = np.zeros(codes.max(), bool)
    else:
        values, codes = np.unique(columns[:, 0], return_inverse=True)
        gaps = np.diff(values)
        step = np.abs(gaps - gaps.min(initial=np.inf)) <= 1e-6 * gaps.min(initial=np.inf)
        step &= step.sum() > max(2, GRID * len(step))
    keys = np.random.default_rng(number).integers(0, 2**64, codes.max() + 1, dtype=np.uint64)
    return _Feature(codes, np.bincount(codes, counts), step, keys, is_text)


def _needed(features: list[_Feature]) -> list[_Feature]:
    """The features without those that the others determine: a total, the last of a set of indicators."""
    left = list(features)
    for feature in features:
        rest = [other for other in left if other is not feature]
        if rest and len(np.unique(_hash(rest))) == len(feature.codes):
            left = rest
    return left


def _hash(features: list[_Feature]) -> np.ndarray:
    return np.stack([feature.key for feature in features]).sum(0, dtype=np.uint64)


def _expected(features: list[_Feature], counts: np.ndarray) -> np.ndarray:
    """How many independent rows should equal each distinct row, a guess by each feature, (F, G).

    Of the rows that agree in all other features a share as large as that of the feature's value among the other rows;
    or the mean number of rows one step away, if that is more.
    """
    rows, out, num = _hash(features), [], counts.sum()
    order = np.argsort(rows)

    def there(key: np.ndarray) -> np.ndarray:
        at = order[np.minimum(np.searchsorted(rows, key, sorter=order), len(rows) - 1)]
        return np.where(rows[at] == key, counts[at], 0)

    for feature in features:
        rest, codes, totals = rows - feature.key, feature.codes, feature.totals
        same = np.unique(rest, return_inverse=True)[1]
        others = np.bincount(same, counts)[same] - counts
        steps = [(np.append(False, feature.step)[codes], -1), (np.append(feature.step, False)[codes], 1)]
        beside = [np.where(near, np.roll(totals, -by)[codes], 0) for near, by in steps]
        share = np.minimum(np.maximum(totals[codes] - counts, sum(beside) / 2) / np.maximum(num - counts, 1), 0.999)
        moved = [np.where(near, there(rest + np.roll(feature.keys, -by)[codes]), 0) for near, by in steps]
        out.append(np.maximum(others * share / (1 - share), sum(moved) / 2))
    return np.array(out)
