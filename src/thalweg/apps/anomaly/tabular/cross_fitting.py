"""Cross-fitted energies of fitted rows: parts *and* scalings of folds that did not have the row.

    U_i = U(scaling_{-k}(x_i); rows outside fold k),    k the fold of row i

A scaling's mean, scale and ranks move a little to each row that sets them, and a sum over D columns adds that up: a
new row looks stranger than one that was left out of the kernels alone, by about 2 sqrt(D) / N of the energy's spread.
`apps.anomaly.tabular.tabular_energy` calibrates with these energies where that matters.
"""

from collections.abc import Sequence

import numpy as np
import torch

from thalweg.apps.anomaly.tabular.mixtures_and_histograms import Mixture
from thalweg.apps.anomaly.tabular.scalings import SCALINGS
from thalweg.energy.density.kde_ivf import IVFKernelDensityEnergy

FOLDS = 10
WIDE = 1 / 3  # D / N from which on they are used: with fewer columns they err as far as the others, to the safe side


def needs_cross_fitting(rows: np.ndarray) -> bool:
    """Whether so few rows (N, D) set the scalings that each is seen in them."""
    n, d = rows.shape
    return n >= FOLDS and d / n > WIDE


def cross_fitted(
    rows: np.ndarray, noises: dict[str, float], mixed: Sequence[str], *, neighbours: int, seed: int
) -> dict[str, np.ndarray]:
    """Energies (N,) by part: each scaling's kernel at its noise, the `neighbours`' distance, Gaussians in `mixed` ones.

    Costs one more pass of kernels left out, and FOLDS times the scalings and Gaussians.
    """
    n = len(rows)
    fold = np.random.default_rng(seed).permutation(np.arange(n) % FOLDS)
    out = {name: np.empty(n) for name in (*SCALINGS, "distance", *(f"{name}.mixture" for name in mixed))}
    for k in range(min(n, FOLDS)):
        new = fold == k
        for name, kind in SCALINGS.items():
            scaling = kind(rows[~new])
            stored, y = scaling(rows[~new]), scaling(rows[new])
            kernel = IVFKernelDensityEnergy(torch.from_numpy(stored), t=noises[name], gap=0)
            u, distance = kernel.with_distances(torch.from_numpy(y), neighbours if name == "standard" else 0)
            out[name][new] = u.numpy()
            if name == "standard":
                out["distance"][new] = distance.numpy()
            if name in mixed:
                out[f"{name}.mixture"][new] = Mixture.fit(stored, seed, 1)(y)
    return out
