"""Chains with the network in bfloat16 and everything else in the type of the positions.

bfloat16 has eight significant bits: an energy of 300 nats has steps of two. So only the network's gradient is computed
in it. Positions, noise and updates keep their type, and a Metropolis test reads energies in full precision. The test is
then exact for exp(-E) whatever the gradient of the proposal is, as long as it is a function of the position; a rough
one lowers acceptance only. An unadjusted chain has no such correction; its error is measured
(docs/experiments/claims.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.core.device import autocast
from thalweg.energy.base import AnyEnergy, Bipartite, HasGradient, HasNoiseLevels, energy_and_grad
from thalweg.energy.wrappers import EnergyWrapper
from thalweg.sampler.base import GradientOnly, Sampler


def reads_energies(sampler: Sampler[Any]) -> bool:
    """Whether the steps use energies: true unless the sampler states otherwise (`sampler.base.GradientOnly`)."""
    return not (isinstance(sampler, GradientOnly) and sampler.gradient_only)


@dataclass
class AtPrecision(EnergyWrapper):
    """E(x) or U(x, t) with the network as it is, or in bfloat16 (`bf16`); no autocast is on around it.

    `exact`: energies come from the network in full precision all the same, and cost a forward pass; gradients do not.
    """

    energy: AnyEnergy
    bf16: bool
    exact: bool = True

    keeps = (Bipartite, HasNoiseLevels)

    def __post_init__(self):
        self._gradient = self.energy.value_and_grad if isinstance(self.energy, HasGradient) else None

    def value_and_grad(self, x: Tensor, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E(x), dE/dx) by the energy's own short way; or E(x) in full precision, dE/dx in bfloat16."""
        if not self.bf16:
            return None if self._gradient is None else self._gradient(x, *t)
        if not self.exact or t:
            return None
        with torch.no_grad():
            u = self.energy(x)
        with autocast(x.device, True):
            return u, energy_and_grad(self.energy, x)[1]

    def __call__(self, x: Tensor, *t: Tensor) -> Tensor:
        """The energy in nats."""
        if not self.bf16 or self.exact:
            return self.energy(x, *t)
        with autocast(x.device, True):
            return self.energy(x, *t)


@contextmanager
def at_precision(energy: AnyEnergy, sampler: Sampler[Any], x: Tensor, bf16: bool) -> Iterator[AtPrecision]:
    """The energy as the sampler should see it, with the caller's autocast off: steps are computed in x's type."""
    with autocast(x.device, False):
        yield AtPrecision(energy, bf16, reads_energies(sampler))
