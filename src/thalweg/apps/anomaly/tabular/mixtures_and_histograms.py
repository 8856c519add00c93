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
from thalweg.energy.density.kernel_sums import TOGETHER, blocks

COUNTS = (1, 4, 10)
ENTRIES = 65_536  # of a block of whitened rows, so that it stays near the processor
ROWS = 2048  # of which the components' terms are summed at once
NEAR = 8.0  # standard deviations
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

    @cached_property
    def means_are_near(self) -> bool:
        """Whether means lie so near the origin that float32 keeps the energies of normal rows to 1e-5 nats."""
        return bool(np.abs(self.means).max() < NEAR)

    def __call__(self, y: np.ndarray, device: torch.device = CPU, *, single: bool = False) -> np.ndarray:
        """(B,) nats. `single`: by products in float32, where `means_are_near`; else in float64."""
        kind = torch.float32 if single and self.means_are_near else torch.float64
        whiten, shift, constants = (part.to(device) for part in self._products)
        whiten, shift, (k, d) = whiten.to(kind), shift.to(kind), self.means.shape
        out, size = torch.empty(len(y), dtype=torch.float64, device=device), max(16, ENTRIES // len(shift))
        z, logs = out.new_empty(size + TOGETHER, k * d, dtype=kind), out.new_empty(ROWS + TOGETHER, k, dtype=kind)
        for first, last in blocks(len(y), ROWS):
            part = torch.zeros(max(last - first, TOGETHER), d, dtype=kind, device=device)
            part[: last - first] = torch.from_numpy(y[first:last]).to(device)
            for at, end in blocks(len(part), size):
                white = torch.addmm(shift, part[at:end], whiten, out=z[: end - at])
                _squares(white.view(-1, k, d), logs[at:end])
            found = constants - logs[: last - first]
            most = found.amax(1)
            torch.sum(found.sub_(most[:, None]).exp2_(), 1, out=out[first:last])
            out[first:last].log2_().add_(most)
        return 0.5 * y.shape[1] * np.log(2 * np.pi) - np.log(2) * out.cpu().numpy()

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor, Tensor]:
        """z = y W + s: whitened rows of all components side by side, (D, K D), (K D,), in units in which log2 w_k p_k =
        c_k - sum z_k².
        """
        eye = np.sqrt(0.5 * np.log2(np.e)) * np.eye(self.means.shape[1])
        inverses = [solve_triangular(f, eye, lower=True).T for f in self.factors]
        shift = -np.concatenate([m @ w for m, w in zip(self.means, inverses, strict=True)])
        constants = self.log_weights - np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(1)
        constants = constants * np.log2(np.e)
        whiten = torch.from_numpy(np.concatenate(inverses, axis=1))
        return whiten, torch.from_numpy(shift), torch.from_numpy(constants)


def _squares(z: Tensor, out: Tensor) -> None:
    """Write the sums of squares (b, k) of z (b, k, d); by NumPy on the CPU, in one pass and two thirds of the time."""
    if z.device.type == "cpu":
        np.einsum("bkd,bkd->bk", z.numpy(), z.numpy(), out=out.numpy())
    else:
        torch.sum(z.square_(), 2, out=out)


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
