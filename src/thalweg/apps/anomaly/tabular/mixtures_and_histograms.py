"""Parts of a tabular energy beside kernels: Gaussian mixtures, and histograms of single columns."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import solve_triangular
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from thalweg.core.device import CPU

COUNTS = (1, 4, 10)
ENTRIES = 65_536  # of a block of whitened rows, so that it stays near the processor
RIDGE = 0.02  # added to every variance of standardised columns, so that discrete columns do not collapse


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """E(y) = -log sum_k w_k N(y; m_k, C_k): `log_weights` (K,), `means` (K, D), Cholesky `factors` (K, D, D)."""

    log_weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray

    @classmethod
    def fit(cls, y: np.ndarray, seed: int, count: int | None = None) -> "Mixture":
        """`count` components, or 1, 4 or 10 by the likelihood of a held-out quarter; one is a Ledoit-Wolf Gaussian."""
        if count is not None:
            return cls._of(y, count, seed)
        held_out = np.random.default_rng(seed).permutation(np.arange(len(y)) % 4) == 0
        counts = [k for k in COUNTS if k == 1 or len(y) / k >= max(20.0, 1.5 * y.shape[1])]
        if len(counts) == 1:
            return cls._of(y, 1, seed)
        return cls._of(y, min(counts, key=lambda k: float(cls._of(y[~held_out], k, seed)(y[held_out]).mean())), seed)

    @classmethod
    def _of(cls, y: np.ndarray, k: int, seed: int) -> "Mixture":
        if k == 1:
            covariance = np.atleast_2d(ledoit_wolf(y)[0]) + RIDGE * np.eye(y.shape[1])
            return cls(log_weights=np.zeros(1), means=y.mean(0)[None], factors=np.linalg.cholesky(covariance)[None])
        model = GaussianMixture(k, reg_covar=RIDGE, random_state=seed, max_iter=30)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # thirty steps are meant
            model.fit(y)
        return cls(
            log_weights=np.log(np.asarray(model.weights_) + 1e-300),
            means=np.asarray(model.means_),
            factors=np.linalg.cholesky(np.asarray(model.covariances_)),
        )

    def __call__(self, y: np.ndarray, device: torch.device = CPU) -> np.ndarray:
        whiten, shift, constants = (part.to(device) for part in self._products)
        (k, d), size = self.means.shape, max(16, ENTRIES // len(shift))
        out = torch.empty(len(y), dtype=torch.float64, device=device)
        buffers = out.new_empty(min(size, len(y)), k * d), out.new_empty(min(size, len(y)), k)
        for i, part in zip(range(0, len(y), size), torch.from_numpy(y).to(device).split(size), strict=True):
            z, logs = (buffer[: len(part)] for buffer in buffers)
            torch.addmm(shift, part, whiten, out=z)
            torch.sum(z.square_().view(-1, k, d), 2, out=logs)  # a product with ones takes four times as long
            torch.logsumexp(torch.sub(constants, logs, out=logs), dim=1, out=out[i : i + size])
        return 0.5 * y.shape[1] * np.log(2 * np.pi) - out.cpu().numpy()

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor, Tensor]:
        """z = y W + s: whitened rows over sqrt(2) of all components side by side, (D, K D), (K D,); log w_k p_k =
        c_k - sum z_k².
        """
        eye = np.sqrt(0.5) * np.eye(self.means.shape[1])
        inverses = [solve_triangular(f, eye, lower=True).T for f in self.factors]
        shift = -np.concatenate([m @ w for m, w in zip(self.means, inverses, strict=True)])
        constants = self.log_weights - np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(1)
        whiten = torch.from_numpy(np.concatenate(inverses, axis=1))
        return whiten, torch.from_numpy(shift), torch.from_numpy(constants)


class Histograms:
    """E(x) = -sum_j log p_j(x_j): a histogram of each column alone, by value where there are few values."""

    def __init__(self, rows: np.ndarray):
        self.tables = [self._table(column) for column in rows.T]

    @staticmethod
    def _table(column: np.ndarray) -> tuple[bool, np.ndarray, np.ndarray, float]:
        n = len(column)
        values, counts = np.unique(column, return_counts=True)
        if len(values) <= max(2, min(40, n / 10)):
            total = n + 0.5 * len(values) + 0.5
            return True, values, np.log((counts + 0.5) / total), float(np.log(0.5 / total))
        bins = int(np.ceil(min(np.sqrt(n), 50)))
        edges = values[0] + (values[-1] - values[0]) * np.linspace(0, 1, bins + 1)
        counts = np.bincount(_bin(edges, column), minlength=bins)
        total = n + 0.5 * bins
        return False, edges, np.log((counts + 0.5) / total), float(np.log(0.25 / total))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = np.zeros(len(x))
        for (discrete, places, logs, elsewhere), column in zip(self.tables, x.T, strict=True):
            if discrete:
                at = np.clip(np.searchsorted(places, column), 0, len(places) - 1)
                out -= np.where(places[at] == column, logs[at], elsewhere)
            else:
                outside = np.maximum(np.maximum(places[0] - column, column - places[-1]), 0) / (places[-1] - places[0])
                out -= np.where(outside > 0, elsewhere - np.log1p(10 * outside), logs[_bin(places, column)])
        return out


def _bin(edges: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.clip(np.searchsorted(edges, column, "right") - 1, 0, len(edges) - 2)
