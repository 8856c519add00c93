"""The energies behind a detector: what the detector asks of them, and which one a kind of data has."""

import inspect
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch

from thalweg.core.config import class_at
from thalweg.core.errors import UserError
from thalweg.energy.base import Capability

KINDS = {
    "table": "thalweg.apps.anomaly.tabular.tabular_energy:TabularEnergy",
    "image": "thalweg.apps.anomaly.image.image_energy:ImageEnergy",
}


class DetectorEnergy(Protocol):
    """E(x) of rows (B, *), nats, low = normal, fitted to normal rows. Arrays go in and out; it computes on a device."""

    calibration_energies_: np.ndarray  # (n,) of rows as if the fit had not seen them
    train_outlier_scores_: np.ndarray  # (N,) of the fitted rows, high = anomalous

    def to(self, device: torch.device, /) -> Self:
        """Itself, which fits and computes on the device from now on."""
        ...

    def fit(self, x: Any, /, *, seed: int = 0) -> Self: ...

    def num_calibrating(self, num_rows: int, /) -> int:
        """Of so many fitted rows, how many have `calibration_energies_`."""
        ...

    def energy(self, x: Any, /) -> np.ndarray: ...

    def repair(self, x: Any, /) -> np.ndarray:
        """The nearest normal rows, of x's shape."""
        ...

    def state(self) -> dict[str, np.ndarray]: ...

    @classmethod
    def from_state(cls, state: dict[str, Any], /) -> Self: ...


@runtime_checkable
class HasMarginals(Protocol, metaclass=Capability):
    """An energy of rows (B, D) whose features can be taken apart. The detector of tables asks."""

    def shares(self, x: np.ndarray, /) -> np.ndarray:
        """(B, D): by how much the energy drops when a feature is integrated out, nats."""
        ...

    def marginal(self, x: np.ndarray, observed: np.ndarray, /) -> np.ndarray:
        """(B,) energies of the observed features alone, nats; `observed` (B, D) bool."""
        ...


@runtime_checkable
class HasAttribution(Protocol, metaclass=Capability):
    """An energy of images that shows which pixels raise it. The detector of images asks."""

    def attribution(self, x: Any, /) -> np.ndarray:
        """(B, H, W), zero or more."""
        ...


def new_energy(kind: str, options: dict[str, Any] | None) -> DetectorEnergy:
    """The energy of a kind of data with its options, not fitted; UserError for keywords that it does not have."""
    made = energy_class(kind)
    known = list(inspect.signature(made).parameters)
    if options is not None and not (isinstance(options, dict) and set(options) <= set(known)):
        raise UserError(f"must be a dict of keywords among {', '.join(known)}", argument="options", value=options)
    return made(**(options or {}))


def energy_class(kind: str) -> type[DetectorEnergy]:
    """The class of the energy of a kind of data, imported when it is asked for."""
    return class_at(KINDS[kind], "kind", trusted=("thalweg.apps.anomaly",))
