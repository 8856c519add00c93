"""Why a row is strange: each feature's share of the energy, and the value that would have been normal."""

from typing import Any, NamedTuple

import numpy as np


class Reason(NamedTuple):
    """One feature's part in one row's energy; `pandas.DataFrame(reasons)` is a table of them.

    Args:
        row: The number of the row in X, from 0.
        feature: The name of the feature.
        share: Of the row's energy, in [0, 1]; those of a row add up to 1.
        value: As it was given. None: missing.
        repair: The value of the nearest row of low energy.
    """

    row: int
    feature: str
    share: float
    value: Any
    repair: float | str


class ScoredBlock(NamedTuple):
    """Scores of a block of rows, (B,) each, and the main reasons of each flagged row, by its number in the block."""

    energy: np.ndarray  # nats
    rank: np.ndarray  # energies of the calibration that are at least as high
    p_value: np.ndarray
    flag: np.ndarray
    reasons: list[Reason]


class ImageReasons(NamedTuple):
    """`where` (B, H, W): how much each pixel raises the energy; `repaired`: the nearest normal images."""

    where: np.ndarray
    repaired: np.ndarray


def by_feature(shares: np.ndarray, owners: np.ndarray, num_features: int, missing: np.ndarray) -> np.ndarray:
    """Shares (B, D) of encoded columns as fractions by feature (B, F): what is below 0 or missing counts nothing."""
    total = np.zeros((len(shares), num_features))
    positive = np.where(missing, 0.0, np.maximum(np.nan_to_num(shares, nan=0.0, posinf=1e300), 0.0))
    largest = positive.max(axis=1, keepdims=True, initial=0.0)
    np.add.at(total.T, owners, (positive / np.where(largest > 0, largest, 1.0)).T)
    whole = total.sum(1, keepdims=True)
    return np.where(whole > 0, total / np.where(whole > 0, whole, 1.0), 1 / num_features)


def reasons(
    fractions: np.ndarray, names: list[str], values: list[list[Any]], repairs: list[list[float | str]], top: int | None
) -> list[Reason]:
    """Row by row the `top` features, or all, the largest share first."""
    found: list[Reason] = []
    for row, shares in enumerate(fractions):
        order = np.argsort(-shares, kind="stable")[:top]
        found += [Reason(row, names[i], float(shares[i]), values[row][i], repairs[row][i]) for i in order]
    return found
