"""The energy of a bundle that is asked again and again, as a service asks it."""

from contextlib import ExitStack

import torch

from thalweg.energy.base import EnergyFn
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.engine.freeze import kept_frozen


class KeptEnergy:
    """An energy that is kept frozen from `begin` to `end`, and where it lies; None before and afterwards."""

    def __init__(self):
        self.energy: EnergyFn | None = None
        self.device: torch.device | None = None
        self._block = ExitStack()

    def begin(self, energy: EnergyFn) -> None:
        """Freeze it, unless one is kept already."""
        if self.energy is None:
            self.energy, self.device = self._block.enter_context(kept_frozen(energy)), device_of(energy)

    def end(self) -> None:
        """As it was before."""
        self.energy = self.device = None
        self._block.close()

    def __getstate__(self) -> dict[str, object]:
        """Nothing: a copy in another process is not frozen."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()
