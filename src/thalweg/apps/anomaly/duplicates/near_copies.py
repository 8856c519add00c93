"""Near-copies, such as a row and the same row rounded: groups that are closer together than any density explains.

With r_k the distance to the k-th neighbour, (r_k / r_{k+1})^d is Beta(k, 1) where the density is smooth in d dimensions
(Facco, d'Errico, Rodriguez & Laio 2017), so P_k = P(r_k / r_{k+1} < s) = s^{kd}. Whatever mixture of d there is,
P_k <= P_{k+1}^{k / (k+1)}, by Lyapunov's inequality. Groups of k + 1 near-copies break it.
"""

import math

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 10
CLOSER = 0.35  # r_k / r_{k+1} below which k neighbours are close together
LINKED = 0.5  # the same where there are near-copies for certain
TRIAL = 2000  # rows that are asked for near-copies before all are
LEAST = 50  # rows among which near-copies can be told


def near_copies(z: np.ndarray) -> np.ndarray:
    """For each of distinct rows z (G, D), in one unit, the first row of its group of near-copies, (G,)."""
    own, k = np.arange(len(z)), min(NEIGHBOURS, len(z) - 2)
    if len(z) < LEAST:
        return own
    trial = own if len(z) <= TRIAL else np.sort(np.random.default_rng(0).choice(len(z), TRIAL, replace=False))
    index = NearestNeighbors(n_neighbors=k + 2).fit(z)
    close = _close(index, z[trial], CLOSER)[0]
    share, sizes = close.mean(0), np.arange(1, k + 1)
    natural = np.append(share[1:], 0.0) ** (sizes / (sizes + 1))
    found = share > natural + 0.1 + 3 / math.sqrt(len(trial))
    found[-1] = False  # of which there is no next one to compare with
    if not found.any():
        return own
    close, neighbours = _close(index, z, LINKED)
    rows, at = zip(*(_pairs(close, neighbours, size) for size in sizes[found]), strict=True)
    rows, at = np.concatenate(rows), np.concatenate(at)
    graph = coo_array((np.ones(len(rows)), (rows, at)), shape=(len(z), len(z)))
    num, label = connected_components(graph, directed=False)
    if num * (NEIGHBOURS + 2) < len(z):  # a chain, not groups
        return own
    return np.unique(label, return_index=True)[1][label]


def _close(index: NearestNeighbors, z: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """(B, k) whether so many neighbours are close together, and the neighbours, nearest first, (B, k + 1)."""
    distances, neighbours = (found[:, 1:] for found in index.kneighbors(z))
    return distances[:, :-1] < ratio * distances[:, 1:], neighbours


def _pairs(close: np.ndarray, neighbours: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row whose first `size` neighbours are close together, and each of them."""
    rows = np.flatnonzero(close[:, size - 1])
    return np.repeat(rows, size), neighbours[rows, :size].ravel()
