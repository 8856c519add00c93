"""Rows that were copied into a table: they count once, so that leaving a row out leaves its copies out too.

Calibration assumes that rows are independent draws. Copied rows are not: where a row is left out, its copy stays in the
fit, and the energy is that of a row in the fit. Equal rows need not be copies: where values are few, independent rows
are equal too. These stay, as a new row has its equals in the table as well. Taken for copies are a whole table that is
repeated, equal rows that repeating values do not explain (`apps.anomaly.duplicates.expected_ties`), and rows that are
nearly equal (`apps.anomaly.duplicates.near_copies`).
"""

import logging
from typing import Any, NamedTuple

import numpy as np

from thalweg.apps.anomaly.calibration import Calibration, LeaveOneOut
from thalweg.apps.anomaly.duplicates.expected_ties import equal_rows, features_of, times_repeated, unexplained
from thalweg.apps.anomaly.duplicates.near_copies import near_copies
from thalweg.apps.anomaly.energies import DetectorEnergy
from thalweg.apps.anomaly.tabular.scalings import Standard, exponents, scaled

MANY = 0.1  # share of rows that equal others, from which on copies that were not found would matter
log = logging.getLogger("thalweg")


class Copies(NamedTuple):
    """Which rows count.

    Args:
        kept: Numbers of the rows that count, rising.
        counted_by: For each row the position in `kept` of the row that counts for it, (N,).
        num_equal: Of the kept rows, how many equal an earlier one, as values repeat.
    """

    kept: np.ndarray
    counted_by: np.ndarray
    num_equal: int = 0

    @property
    def num(self) -> int:
        """The number of rows that are copies of others."""
        return len(self.counted_by) - len(self.kept)


def copies_of(kind: str, rows: Any, features: np.ndarray | None) -> Copies:
    """Which whole rows of a table, or images, are copies; `features` as for `find_copies`. Warnings give their number,
    and that of equal rows taken for none.
    """
    if kind == "image":
        from thalweg.apps.anomaly.image.image_energy import as_images  # not wanted for tables

        copies = find_image_copies(as_images(rows).numpy())
    else:
        copies = find_copies(rows, features)
    num = len(rows)
    if copies.num:
        log.warning("%d of %d rows are copies of others, equal or nearly so, and count once", copies.num, num)
    if copies.num_equal > MANY * num:
        text = "%d of %d rows equal others, which few values explain, and count each; if they were copied, drop them"
        log.warning(text, copies.num_equal, num)
    return copies


def calibration_of_fitted(energy: DetectorEnergy, rows: np.ndarray, copies: Copies) -> Calibration:
    """The calibration by the leave-one-out energies of an energy's fitted rows (N, D), those that `copies` kept."""
    energies = np.asarray(energy.calibration_energies_, float)
    group, sizes = equal_rows(rows)
    counts = np.bincount(copies.counted_by)
    repeated, equals = (sizes[group] > 1) | (counts > 1), energies.copy()
    if repeated.any():
        equals[repeated] = energy.energy(rows[repeated])
    return Calibration.of_left_out(LeaveOneOut(energies, equals, counts), group)


def find_copies(x: np.ndarray, features: np.ndarray | None = None) -> Copies:
    """Which rows of a table (N, D) are copies. `features` (D,): the feature of each column; None: its own."""
    group, counts = equal_rows(x)
    keep = counts.copy()
    if len(counts) < len(x):
        keep //= times_repeated(counts)
        features = features_of(x) if features is None else features
        keep[unexplained(x[_first(group)], features, keep)] = 1
    distinct = x[_first(group)]
    distinct = scaled(distinct, exponents(distinct))
    return _copies(group, keep, near_copies(Standard(distinct)(distinct)))


def find_image_copies(x: np.ndarray) -> Copies:
    """Which images (N, *) of float in [0, 1] or bytes are copies, in eight bits; equal images are never chance."""
    pixels = x.reshape(len(x), -1)
    coded = pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels.astype(np.float64)).astype(np.uint8)
    group, counts = equal_rows(coded)
    return _copies(group, np.ones_like(counts), near_copies(coded[_first(group)].astype(np.float32)))


def _first(group: np.ndarray) -> np.ndarray:
    """The place of the first row of each group."""
    return np.unique(group, return_index=True)[1]


def _copies(group: np.ndarray, keep: np.ndarray, near: np.ndarray) -> Copies:
    """From groups of equal rows, how many of each stay, and for each group the group that it is nearly equal to."""
    own = near[group] == group
    stays = own & (_occurrence(group) < keep[group])
    kept = np.flatnonzero(stays)
    place = np.full(len(keep), -1)
    place[group[kept][::-1]] = np.arange(len(kept))[::-1]  # of the first row kept of each group
    counted_by = place[near[group]]
    counted_by[kept] = np.arange(len(kept))
    return Copies(kept, counted_by, len(kept) - len(np.unique(group[kept])))


def _occurrence(group: np.ndarray) -> np.ndarray:
    """The number of earlier rows of the same group, (N,)."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    out = np.empty(len(group), int)
    out[order] = np.arange(len(group)) - starts
    return out
