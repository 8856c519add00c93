"""The energy behind the detector of tables: kernels and mixtures on one scale of surprise.

    E(x) = (1/K) sum_k -log p_k(x),    p_k(x) = the share of normal rows with an energy U_k above x's

U_k are the exact energies of the smoothed rows (`thalweg.energy.empirical`) in three views of the table
(`apps.anomaly.views`), with t by leave-one-out likelihood, and Gaussian mixtures in two of them, their size by held-out
likelihood. The p-values come from energies of rows that the part had not seen, with an exponential tail.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from thalweg.apps.anomaly.parts import Columns, Mixture, Tail
from thalweg.apps.anomaly.views import VIEWS
from thalweg.energy.empirical import SmoothedEmpirical, leave_one_out, likeliest_noise, squared_distances

NEAREST = 64
COARSE = 16.0  # the large noise of `outlyingness_`, over the likeliest t
FOLDS = 3
HUGE = 1e150  # numbers beyond are moved here, so that no view overflows
MIXED = ("standard", "arcsinh")


class TabularEnergy:
    """Energies (B,) of numeric rows (B, D), low = normal: the mean of calibrated surprises, in nats.

    `num_stored` rows at most are kept, drawn by the seed; those left out are new to the energy. Costs
    3 `num_stored` D multiplications a row.
    """

    unseen_: np.ndarray
    outlyingness_: np.ndarray

    def __init__(self, *, num_stored: int = 10_000):
        self.num_stored = num_stored

    def fit(self, x: np.ndarray, *, seed: int = 0) -> Self:
        """Fit to rows (N, D), finite, in any units. ValueError for anything else."""
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or min(x.shape) < 1 or not np.isfinite(x).all():
            raise ValueError(f"x has shape {x.shape}: want (N, D) finite numbers, one row or more")
        if self.num_stored < 1:
            raise ValueError(f"num_stored={self.num_stored}: want 1 row or more")
        x = np.clip(x, -HUGE, HUGE)
        order = np.random.default_rng(seed).permutation(len(x))
        kept, rest = np.sort(order[: self.num_stored]), np.sort(order[self.num_stored :])
        self._place(x[kept])
        self.noises_ = {name: likeliest_noise(torch.from_numpy(y)) for name, y in self._stored.items()}
        unseen, coarse = self._kernels_unseen()
        crossed, columns = self._fit_mixtures(seed)
        unseen |= crossed
        self.tails_ = {name: Tail(known=np.sort(u)) for name, u in unseen.items()}
        robust = {**crossed, "coarse": coarse, "columns": columns}
        known = {name: Tail(known=np.sort(u)) for name, u in robust.items()}
        self.unseen_, self.outlyingness_ = np.empty(len(x)), np.empty(len(x))
        self.unseen_[kept] = self._fuse(unseen)
        self.outlyingness_[kept] = np.mean([known[name](u) for name, u in robust.items()], axis=0)
        if len(rest):
            parts = self._parts(x[rest])
            self.unseen_[rest] = self._fuse(parts)
            far = {name: parts[name] for name in crossed}
            far["columns"] = Columns(self.rows_)(x[rest])
            far["coarse"] = self._kernel("arcsinh", COARSE)(x[rest])
            self.outlyingness_[rest] = np.mean([known[name](u) for name, u in far.items()], axis=0)
        return self

    def energy(self, x: np.ndarray) -> np.ndarray:
        """E(x), (B,) nats, finite for all finite rows."""
        return self._fuse(self._parts(self._checked(x)))

    def shares(self, x: np.ndarray) -> np.ndarray:
        """(B, D): the drop of the arcsinh kernel's energy when a feature is integrated out, nats."""
        x = self._checked(x)
        y, stored, t = self.views_["arcsinh"](x), self._stored["arcsinh"], self.noises_["arcsinh"]
        out = np.empty(x.shape)
        for i, at in enumerate(self._nearest(y)):
            each = (y[i] - stored[at]) ** 2 / (2 * t)
            log = -each.sum(1)
            without = log[:, None] + each
            top = without.max(0)
            out[i] = top + np.log(np.exp(without - top).sum(0)) - np.logaddexp.reduce(log)
        return out

    def marginal(self, x: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """(B,) energies of the `observed` features (bool (B, D)) alone; what is not observed may hold anything.

        Whole rows have their energy. Others have the surprise of the arcsinh kernel in the observed features, among
        stored rows seen in the same features, so that patterns can be compared; 0 where nothing is observed.
        """
        observed = np.asarray(observed, dtype=bool)
        x = self._checked(np.where(observed, x, self.rows_[0]))
        if observed.shape != x.shape:
            raise ValueError(f"observed has shape {observed.shape}: want {x.shape}, a flag for each number")
        out, y = np.zeros(len(x)), self.views_["arcsinh"](x)
        patterns, which = np.unique(observed, axis=0, return_inverse=True)
        for k, seen in enumerate(patterns):
            at = np.flatnonzero(which.ravel() == k)
            if seen.all():
                out[at] = self.energy(x[at])
            elif seen.any():
                out[at] = _surprise(y[at][:, seen], self._stored["arcsinh"][:1000, seen])
        return out

    def repair(self, x: np.ndarray) -> np.ndarray:
        """(B, D): the stored row that is nearest in the arcsinh view, in x's units."""
        y = self.views_["arcsinh"](self._checked(x))
        return self.rows_[[at[0] for at in self._nearest(y)]] if len(y) else np.empty((0, self.rows_.shape[1]))

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was fitted, as arrays."""
        out = {"rows": self.rows_, "unseen": self.unseen_, "outlyingness": self.outlyingness_}
        out["num_stored"] = np.array(self.num_stored)
        out |= {f"noise.{name}": np.array(t) for name, t in self.noises_.items()}
        out |= {f"tail.{name}": tail.known for name, tail in self.tails_.items()}
        for name, part in self.mixtures_.items():
            out |= {f"mixture.{name}.{field}": value for field, value in vars(part).items()}
        return out

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The energy that `state` came from."""
        arrays = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}
        self = cls(num_stored=int(arrays["num_stored"]))
        self._place(arrays["rows"])
        self.unseen_, self.outlyingness_ = arrays["unseen"], arrays["outlyingness"]
        self.noises_ = {name: float(arrays[f"noise.{name}"]) for name in VIEWS}
        self.tails_ = {n.removeprefix("tail."): Tail(known=a) for n, a in arrays.items() if n.startswith("tail.")}
        fields = ("log_weights", "means", "factors")
        self.mixtures_ = {
            name: Mixture(**{field: arrays[f"mixture.{name}.{field}"] for field in fields})
            for name in MIXED
            if f"mixture.{name}.means" in arrays
        }
        return self

    def _place(self, rows: np.ndarray) -> None:
        self.rows_ = rows
        self.views_ = {name: view(rows) for name, view in VIEWS.items()}
        self._stored = {name: view(rows) for name, view in self.views_.items()}

    def _kernels_unseen(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The kernels' leave-one-out energies, and the coarse one's; zeros for one row, which has no others."""
        out, coarse = {}, np.zeros(len(self.rows_))
        for name, y in self._stored.items():
            t, wide = self.noises_[name], name == "arcsinh"
            if len(y) == 1:
                out[name] = np.zeros(1)
                continue
            u = leave_one_out(torch.from_numpy(y), [t, COARSE * t] if wide else [t]).numpy()
            out[name] = u[0]
            coarse = u[1] if wide else coarse
        return out, coarse

    def _fit_mixtures(self, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Mixtures on all stored rows, and the cross-fitted energies of mixtures and of columns alone."""
        n = len(self.rows_)
        self.mixtures_: dict[str, Mixture] = {}
        crossed, columns = {}, np.zeros(n)
        if n < 2 * FOLDS:
            return crossed, columns
        fold = np.random.default_rng(seed).permutation(np.arange(n) % FOLDS)
        for name in MIXED:
            y, crossed[name + ".mixture"] = self._stored[name], np.empty(n)
            self.mixtures_[name] = Mixture.fit(y, seed)
            for k in range(FOLDS):
                crossed[name + ".mixture"][fold == k] = Mixture.fit(y[fold != k], seed)(y[fold == k])
        for k in range(FOLDS):
            columns[fold == k] = Columns(self.rows_[fold != k])(self.rows_[fold == k])
        return crossed, columns

    def _kernel(self, name: str, factor: float = 1.0) -> Any:
        energy = SmoothedEmpirical(torch.from_numpy(self._stored[name]), t=self.noises_[name] * factor)
        return lambda x: energy(torch.from_numpy(self.views_[name](x))).numpy()

    def _parts(self, x: np.ndarray) -> dict[str, np.ndarray]:
        out = {name: self._kernel(name)(x) for name in VIEWS}
        return out | {f"{name}.mixture": part(self.views_[name](x)) for name, part in self.mixtures_.items()}

    def _fuse(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        return np.mean([self.tails_[name](u) for name, u in parts.items()], axis=0)

    def _nearest(self, y: np.ndarray) -> list[np.ndarray]:
        stored = torch.from_numpy(self._stored["arcsinh"])
        k = min(NEAREST, len(stored))
        blocks = torch.from_numpy(y).split(1024)
        return [at for b in blocks for at in squared_distances(b, stored).topk(k, largest=False).indices.numpy()]

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.rows_.shape[1] or not np.isfinite(x).all():
            raise ValueError(f"x has shape {x.shape}: want (B, {self.rows_.shape[1]}) finite numbers")
        return np.clip(x, -HUGE, HUGE)


def _surprise(y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """-log p of kernel energies at y (B, d) among the leave-one-out energies of the rows (N, d)."""
    stored = torch.from_numpy(np.ascontiguousarray(rows))
    t = likeliest_noise(stored)
    known = leave_one_out(stored, [t])[0].numpy() if len(rows) > 1 else np.zeros(1)
    u = SmoothedEmpirical(stored, t=t)(torch.from_numpy(np.ascontiguousarray(y))).numpy()
    return Tail(known=np.sort(known))(u)
