"""The energy behind the detector of tables: kernels and mixtures on one scale, that of -log p-values.

    E(x) = (1/K) sum_k -log p_k(x),    p_k(x) = the share of normal rows with an energy U_k above x's

U_k are the energies of the smoothed rows (`thalweg.energy.density.kde_ivf`) in three scalings of the table
(`anomaly.tabular.scalings`), with t by leave-one-out likelihood; Gaussian mixtures in two of them, their size by
held-out likelihood; and the mean squared distance to 5 neighbours, standardised. The p-values come from energies of
rows that the part had not seen, with an exponential tail.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Self

import numpy as np
import torch

from thalweg.apps.anomaly.calibration import ROUNDING
from thalweg.apps.anomaly.duplicates.expected_ties import equal_rows
from thalweg.apps.anomaly.surprise import LogPValue
from thalweg.apps.anomaly.tabular.cross_fitting import cross_fitted, needs_cross_fitting
from thalweg.apps.anomaly.tabular.mixtures_and_histograms import Histograms, Mixture
from thalweg.apps.anomaly.tabular.scalings import SCALINGS, exponents, scaled
from thalweg.core import check
from thalweg.core.device import CPU
from thalweg.core.errors import UserError
from thalweg.energy.density.kde import KernelDensityEnergy, leave_one_out, loo_bandwidth, squared_distances
from thalweg.energy.density.kde_ivf import SMALL, IVFKernelDensityEnergy, SearchParams

NEAREST = 64
NEIGHBOURS = 5  # whose mean squared distance is a part beside the kernels
COARSE = 16.0  # the large noise of `train_outlier_scores_`, over the likeliest t
WIDE = 10_000  # rows that mixtures are fitted to, and that the coarse kernel has
FOLDS = 3
MIXED = ("standard", "arcsinh")
SINGLE = 1e-5  # nats that sums in float32 may be off by; squared distances ten times as many units of t


class TabularEnergy:
    """Energies (B,) of numeric rows (B, D), low = normal: the mean of the parts' -log p-values, in nats.

    Args:
        num_stored: Rows that are kept at most, drawn by the seed; those left out are new to the energy.
        gap: Nats that a kernel may lose on average by leaving far rows out of its sum (`energy.density.kde_ivf`); 0:
            none.

    Attributes:
        calibration_energies_: Energies of the fitted rows as if each had been left out, nats, (N,).
        train_outlier_scores_: How strange each is, by coarse parts, (N,): for tables that hold anomalies themselves.
    """

    calibration_energies_: np.ndarray
    train_outlier_scores_: np.ndarray

    def __init__(self, *, num_stored: int = 100_000, gap: float = 0.01):
        self.num_stored, self.gap = num_stored, gap
        self.device, self.kernels_ = CPU, {}

    def to(self, device: torch.device) -> Self:
        """Itself, whose kernels, mixtures and neighbour searches are computed on the device from now on."""
        self.device = device
        for kernel in self.kernels_.values():
            kernel.to(device)
        return self

    def fit(self, x: np.ndarray, *, seed: int = 0, calibrates: bool = True) -> Self:
        """Fit to rows (N, D), finite, in any units. ValueError for anything else.

        `calibrates`: whether `calibration_energies_` shall have the law of new rows on small and wide tables too
        (`cross_fitted`).
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or min(x.shape) < 1 or not np.isfinite(x).all():
            raise ValueError(f"x: must be (N, D) finite numbers, one row or more, not of shape {x.shape}")
        check.whole("num_stored", self.num_stored, 1)
        check.non_negative(gap=self.gap)
        order = np.random.default_rng(seed).permutation(len(x))
        kept, rest = np.sort(order[: self.num_stored]), np.sort(order[self.num_stored :])
        self._place(x[kept])
        self.scales_: dict[str, LogPValue] = {}
        self.noises_ = {name: loo_bandwidth(torch.from_numpy(y)) for name, y in self._stored.items()}
        self.kernels_ = {
            name: IVFKernelDensityEnergy(self._tensor(y), t=self.noises_[name], gap=self.gap)
            for name, y in self._stored.items()
        }
        kernels, coarse = self._kernels_left_out()
        mixed, columns = self._fit_mixtures(seed)
        left_out = kernels | mixed
        rooms = self._rooms()
        self.scales_ = {name: LogPValue.of(u, rooms.get(name)) for name, u in left_out.items()}
        robust = {**mixed, "coarse": coarse, "columns": columns}
        known = {name: LogPValue.of(u) for name, u in robust.items()}
        self.calibration_energies_, self.train_outlier_scores_ = np.empty(len(x)), np.empty(len(x))
        self.calibration_energies_[kept] = self._fuse(self._cross_fitted(left_out, seed) if calibrates else left_out)
        self.train_outlier_scores_[kept] = np.mean([known[name](u) for name, u in robust.items()], axis=0)
        if len(rest):
            new = scaled(x[rest], self._powers)
            self.calibration_energies_[rest] = self._fuse(self._parts(new))
            y = {name: scaling(new) for name, scaling in self.scalings_.items()}
            far = {f"{name}.mixture": part(y[name], self.device) for name, part in self.mixtures_.items()}
            far["columns"] = Histograms(self._scaled)(new)
            far["coarse"] = self._coarse()[1](self._tensor(y["arcsinh"])).cpu().numpy()
            self.train_outlier_scores_[rest] = np.mean([known[name](u) for name, u in far.items()], axis=0)
        return self

    def num_calibrating(self, num_rows: int) -> int:
        """Of so many rows the number whose energies are `calibration_energies_`: all."""
        return num_rows

    def energy(self, x: np.ndarray) -> np.ndarray:
        """E(x), (B,) nats, finite for all finite rows."""
        return self._fuse(self._parts(self._checked(x)))

    def shares(self, x: np.ndarray) -> np.ndarray:
        """(B, D): the drop of the arcsinh kernel's energy when a feature is integrated out, nats."""
        x = self._checked(x)
        y, stored, t = self.scalings_["arcsinh"](x), self._stored["arcsinh"], self.noises_["arcsinh"]
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

        Whole rows have their energy. Others have the -log p-value of the arcsinh kernel in the observed features,
        among stored rows in the same features, so that patterns can be compared; 0 where nothing is observed.
        """
        observed = np.asarray(observed, dtype=bool)
        x = self._checked(np.where(observed, x, self.rows_[0]))
        if observed.shape != x.shape:
            raise ValueError(f"observed: must have a flag for each number, {x.shape}, not {observed.shape}")
        out, y = np.zeros(len(x)), self.scalings_["arcsinh"](x)
        patterns, which = np.unique(observed, axis=0, return_inverse=True)
        for k, pattern in enumerate(patterns):
            at = np.flatnonzero(which.ravel() == k)
            if pattern.all():
                out[at] = self._fuse(self._parts(x[at]))
            elif pattern.any():
                out[at] = _log_p_value(y[at][:, pattern], self._stored["arcsinh"][:1000, pattern])
        return out

    def repair(self, x: np.ndarray) -> np.ndarray:
        """(B, D): the stored row that is nearest in the arcsinh scaling, in x's units."""
        y = self.scalings_["arcsinh"](self._checked(x))
        return self.rows_[[at[0] for at in self._nearest(y)]] if len(y) else np.empty((0, self.rows_.shape[1]))

    def state(self) -> dict[str, np.ndarray]:
        """Everything that was fitted, as arrays."""
        out = {"rows": self.rows_, "calibration_energies": self.calibration_energies_}
        out |= {"train_outlier_scores": self.train_outlier_scores_}
        out |= {"num_stored": np.array(self.num_stored), "gap": np.array(self.gap)}
        for name, kernel in self.kernels_.items():
            out |= {f"search.{name}": np.array(kernel.search), f"centers.{name}": kernel.centers.cpu().numpy()}
        out |= {f"noise.{name}": np.array(t) for name, t in self.noises_.items()}
        out |= {f"scale.{name}": scale.known for name, scale in self.scales_.items()}
        for name, part in self.mixtures_.items():
            out |= {f"mixture.{name}.{field}": value for field, value in asdict(part).items()}
        return out

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The energy that `state` came from."""
        arrays = {name: np.asarray(value, dtype=np.float64) for name, value in state.items()}
        self = cls(num_stored=int(arrays["num_stored"]), gap=float(arrays["gap"]))
        self._place(arrays["rows"])
        self.calibration_energies_ = arrays["calibration_energies"]
        self.train_outlier_scores_ = arrays["train_outlier_scores"]
        self.noises_ = {name: float(arrays[f"noise.{name}"]) for name in SCALINGS}
        for name, y in self._stored.items():
            known = SearchParams.of(arrays[f"search.{name}"].tolist()), torch.from_numpy(arrays[f"centers.{name}"])
            self.kernels_[name] = IVFKernelDensityEnergy(
                torch.from_numpy(y), t=self.noises_[name], gap=self.gap, known=known
            )
        rooms = self._rooms()
        named = {n.removeprefix("scale."): a for n, a in arrays.items() if n.startswith("scale.")}
        self.scales_ = {name: LogPValue(known=a, room=rooms.get(name, ROUNDING)) for name, a in named.items()}
        self.mixtures_ = {
            name: Mixture(**{field.name: arrays[f"mixture.{name}.{field.name}"] for field in fields(Mixture)})
            for name in MIXED
            if f"mixture.{name}.means" in arrays
        }
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy keeps: `state`, as the kernels' lists are made anew of it, and are far larger."""
        return self.state() | {"device": self.device} if self._is_fitted() else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "rows" not in state:
            vars(self).update(state)
            return
        device = state["device"]
        found = self.from_state({name: value for name, value in state.items() if name != "device"})
        vars(self).update(vars(found.to(device if device.type != "cuda" or torch.cuda.is_available() else CPU)))

    def _is_fitted(self) -> bool:
        return "train_outlier_scores_" in vars(self)

    def _place(self, rows: np.ndarray) -> None:
        self.rows_, self._powers = rows, exponents(rows)
        self._scaled = scaled(rows, self._powers)
        self.scalings_ = {name: scaling(self._scaled) for name, scaling in SCALINGS.items()}
        self._stored = {name: scaling(self._scaled) for name, scaling in self.scalings_.items()}

    def _kernels_left_out(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The kernels' leave-one-out energies, and the coarse one's; zeros for one row, which has no others."""
        n = len(self.rows_)
        if n == 1:
            return {name: np.zeros(1) for name in (*SCALINGS, "distance")}, np.zeros(1)
        out = self._kernels(dict.fromkeys(SCALINGS))
        some, kernel = self._coarse()
        coarse = np.empty(n)
        coarse[some] = kernel.leave_one_out().cpu().numpy()
        others = np.setdiff1d(np.arange(n), some)
        coarse[others] = kernel(self._tensor(self._stored["arcsinh"][others])).cpu().numpy()
        return out, coarse

    def _rooms(self) -> dict[str, float]:
        """How far apart the parts' energies may be and count as equal, where equal rows make that matter: beyond 1,024
        rows the kernels' sums and the mixtures' products are in float32. Empty for tables of distinct rows.
        """
        if len(equal_rows(self.rows_)[1]) == len(self.rows_):
            return {}
        rooms = dict.fromkeys((*SCALINGS, "distance", *(f"{name}.mixture" for name in MIXED)), ROUNDING)
        if len(self.rows_) > SMALL:
            rooms = dict.fromkeys(rooms, SINGLE) | {"distance": 10 * SINGLE * self.noises_["standard"]}
        return rooms

    def _cross_fitted(self, left_out: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """The parts' energies of rows that set no scaling either, where that makes a difference."""
        if not needs_cross_fitting(self._scaled):
            return left_out
        single = [name for name, part in self.mixtures_.items() if len(part.means) == 1]
        return left_out | cross_fitted(self._scaled, self.noises_, single, neighbours=NEIGHBOURS, seed=seed)

    def _coarse(self) -> tuple[np.ndarray, IVFKernelDensityEnergy]:
        """The arcsinh kernel at `COARSE` t on some of the rows, all of them up to `WIDE`; it is too wide for cells."""
        some = _evenly(len(self.rows_))
        y, t = self._stored["arcsinh"][some], COARSE * self.noises_["arcsinh"]
        return some, IVFKernelDensityEnergy(self._tensor(y), t=t, gap=0)

    def _fit_mixtures(self, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Mixtures on all stored rows, and the cross-fitted energies of mixtures and of columns alone."""
        n = len(self.rows_)
        self.mixtures_: dict[str, Mixture] = {}
        mixed, columns = {}, np.zeros(n)
        if n < 2 * FOLDS:
            return mixed, columns
        fold = np.random.default_rng(seed).permutation(np.arange(n) % FOLDS)
        some = np.isin(np.arange(n), _evenly(n))
        for name in MIXED:
            y, mixed[name + ".mixture"] = self._stored[name], np.empty(n)
            self.mixtures_[name] = Mixture.fit(y[some], seed)
            for k in range(FOLDS):
                part = Mixture.fit(y[some & (fold != k)], seed, len(self.mixtures_[name].means))
                mixed[name + ".mixture"][fold == k] = part(y[fold == k], self.device)
        for k in range(FOLDS):
            columns[fold == k] = Histograms(self._scaled[fold != k])(self._scaled[fold == k])
        return mixed, columns

    def _parts(self, x: np.ndarray) -> dict[str, np.ndarray]:
        y = {name: scaling(x) for name, scaling in self.scalings_.items()}
        out = self._kernels({name: self._tensor(part) for name, part in y.items()})
        single = len(self.rows_) > SMALL
        mixed = {n: part(y[n], self.device, single=single) for n, part in self.mixtures_.items()}
        out |= {f"{name}.mixture": u for name, u in mixed.items()}
        return {name: out[name] for name in self.scales_} if self.scales_ else out

    def rounding(self, x: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """By part, how far rounding may put its energies off, (B,) nats, of rows that `_checked` gives.

        At least `SINGLE` of an energy. Where a row lies many noise widths from the middle, float32 gives more.
        """
        unit = self.noises_["standard"]
        rooms = {name: SINGLE * np.maximum(np.abs(u), 1.0) for name, u in parts.items()}
        rooms["distance"] *= 10 * unit
        for name, kernel in self.kernels_.items():
            off = kernel.rounding(self._tensor(self.scalings_[name](x))).cpu().numpy()
            rooms[name] = np.maximum(rooms[name], off)
            if name == "standard":  # a squared distance is 2 t times its nats
                rooms["distance"] = np.maximum(rooms["distance"], 2 * unit * off)
        return rooms

    def _kernels(self, y: Mapping[str, torch.Tensor | None]) -> dict[str, np.ndarray]:
        """The kernels' energies and the neighbours' distance, of rows by scaling; None: of stored rows, left out."""
        out = {}
        for name, kernel in self.kernels_.items():
            at = y[name]
            if name == "standard":
                out[name], out["distance"] = (part.cpu().numpy() for part in kernel.with_distances(at, NEIGHBOURS))
            else:
                out[name] = (kernel.leave_one_out() if at is None else kernel(at)).cpu().numpy()
        return out

    def _fuse(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        out = np.zeros(len(next(iter(parts.values()))))
        for name, u in parts.items():
            if np.isnan(u).any():  # stored numbers of the right form, with which nothing can be computed
                hint = "restore the detector from a copy, or fit again"
                raise UserError(f"must be rows whose energy can be computed, and {name} is no number", hint=hint)
            out += self.scales_[name](u)
        out /= len(parts)
        return out

    def _nearest(self, y: np.ndarray) -> list[np.ndarray]:
        stored = self._tensor(self._stored["arcsinh"])
        k = min(NEAREST, len(stored))
        found = [squared_distances(b, stored).topk(k, largest=False).indices for b in self._tensor(y).split(1024)]
        return [at for block in found for at in block.cpu().numpy()]

    def _tensor(self, y: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(y).to(self.device)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.rows_.shape[1] or not np.isfinite(x).all():
            raise ValueError(f"x: must be (B, {self.rows_.shape[1]}) finite numbers, not of shape {x.shape}")
        return scaled(x, self._powers)


def _evenly(n: int) -> np.ndarray:
    """All of n places, or `WIDE` evenly spaced ones."""
    return np.arange(n) if n <= WIDE else np.linspace(0, n - 1, WIDE).astype(int)


def _log_p_value(y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """-log p of kernel energies at y (B, d) among the leave-one-out energies of the rows (N, d)."""
    stored = torch.from_numpy(np.ascontiguousarray(rows))
    t = loo_bandwidth(stored)
    known = leave_one_out(stored, [t])[0].numpy() if len(rows) > 1 else np.zeros(1)
    u = KernelDensityEnergy(stored, t=t)(torch.from_numpy(np.ascontiguousarray(y))).numpy()
    return LogPValue.of(known)(u)
