"""The energy of a table: minus the log-density of its rows, smoothed.

    E(x) = -log (1/N) sum_j exp(-|z - z_j|² / 2h²) + D log h,    z = (x - mean) / spread,

h by leave-one-out likelihood (Habbema, Hermans & van den Broek 1974), so no label is used.
"""

from typing import Any, Self

import numpy as np
from scipy.special import logsumexp

BLOCK = 512
FAR = 1e100  # spreads away, where squares still fit a double
GRID = np.geomspace(0.02, 3.0, 24)  # bandwidths tried, times sqrt(D)


class TabularEnergy:
    """A kernel energy of rows (N, D). Memory N x D; N x D operations a row."""

    unseen_: np.ndarray
    outlyingness_: np.ndarray

    def fit(self, x: np.ndarray, *, seed: int = 0) -> Self:
        """Store the rows and choose h; `seed` is not needed. Constant columns have spread 1."""
        self.mean_, spread = x.mean(0), x.std(0)
        self.spread_ = np.where(spread > 1e-12 * (1 + np.abs(self.mean_)), spread, 1.0)
        self.z_ = self._scaled(x)
        n, d = x.shape
        if n == 1:
            self.h_ = float(np.sqrt(d))
            self.unseen_ = np.zeros(1)
        else:
            tried = self._left_out(GRID * np.sqrt(d))
            best = int(tried.mean(1).argmin())
            self.h_, self.unseen_ = float(GRID[best] * np.sqrt(d)), tried[best]
        self.outlyingness_ = self.unseen_
        return self

    def energy(self, x: np.ndarray) -> np.ndarray:
        """E(x), (B,) nats."""
        return self.marginal(x, np.ones(x.shape, bool))

    def marginal(self, x: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Energy of the observed part, (B,) nats; `observed` (B, D) bool. Values elsewhere are not looked at."""
        z = np.where(observed, self._scaled(np.where(observed, x, 0.0)), 0.0)
        parts = [self._log_kernels(z[i : i + BLOCK], observed[i : i + BLOCK]) for i in range(0, len(z), BLOCK)]
        u = np.concatenate([-logsumexp(k, axis=1) for k in parts]) if parts else np.zeros(0)
        return u + np.log(len(self.z_)) + observed.sum(1) * np.log(self.h_)

    def shares(self, x: np.ndarray) -> np.ndarray:
        """Each feature's mean squared distance to the rows around x, (B, D) nats."""
        z = self._scaled(x)
        return np.concatenate([self._shares(row) for row in z[:, None]]) if len(z) else np.zeros(x.shape)

    def repair(self, x: np.ndarray) -> np.ndarray:
        """Where mean shift (Fukunaga & Hostetler 1975) from x has arrived after ten rounds, (B, D), units of x."""
        z = self._scaled(x)
        for _ in range(10 if len(z) else 0):
            z = np.concatenate([self._weights(row) @ self.z_ for row in z[:, None]])
        return z * self.spread_ + self.mean_

    def state(self) -> dict[str, Any]:
        """Everything that `from_state` needs: arrays and numbers."""
        return {k: getattr(self, k) for k in ("mean_", "spread_", "z_", "h_", "unseen_", "outlyingness_")}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The energy that gave the state."""
        new = cls()
        vars(new).update(state)
        return new

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.clip((x - self.mean_) / self.spread_, -FAR, FAR)

    def _log_kernels(self, z: np.ndarray, observed: np.ndarray) -> np.ndarray:
        d2 = np.zeros((len(z), len(self.z_)))
        for j in range(z.shape[1]):  # feature by feature, so that a row's energy does not depend on its batch
            d2 += observed[:, j, None] * (z[:, j, None] - self.z_[None, :, j]) ** 2
        return -d2 / (2 * self.h_**2)

    def _weights(self, z: np.ndarray) -> np.ndarray:
        k = self._log_kernels(z, np.ones(z.shape, bool))
        return np.exp(k - logsumexp(k, axis=1, keepdims=True))

    def _shares(self, z: np.ndarray) -> np.ndarray:
        return self._weights(z) @ ((z - self.z_) ** 2) / (2 * self.h_**2)

    def _left_out(self, bandwidths: np.ndarray) -> np.ndarray:
        n, d = self.z_.shape
        self.h_, tried = 1.0, np.empty((len(bandwidths), n))
        for start in range(0, n, BLOCK):
            k = self._log_kernels(self.z_[start : start + BLOCK], np.ones((min(BLOCK, n - start), d), bool))
            k[np.arange(len(k)), start + np.arange(len(k))] = -np.inf
            for i, h in enumerate(bandwidths):
                tried[i, start : start + len(k)] = np.log(n - 1) + d * np.log(h) - logsumexp(k / h**2, axis=1)
        return tried
