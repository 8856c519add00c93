"""A network in bfloat16, and everything that a chain is exact by in the positions' own type.

bfloat16 has eight significant bits: an energy of 300 nats comes in steps of two, and a position near 1 in steps of
1/128. So only the network's gradient may be that rough. Positions, noise and updates keep their type; and where a
Metropolis test reads energies, they are those of the network in full precision. The test is then exact for exp(-E)
whatever the gradient g~ of the proposal is, as long as g~ is a function of the position: a worse g~ costs acceptance,
never correctness. An unadjusted chain has no such guard; what bfloat16 costs it is measured
(docs/experiments/claims.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.energy.base import Bipartite, HasGradient, HasNoiseLevels, energy_and_grad
from thalweg.energy.wrappers import EnergyWrapper
from thalweg.sampler.base import GradientOnly


def reads_energies(sampler: Any) -> bool:
    """Whether a kernel's step uses the energies: all do that do not say otherwise (`sampler.base.GradientOnly`)."""
    return not (isinstance(sampler, GradientOnly) and sampler.gradient_only)


@dataclass
class AtPrecision(EnergyWrapper):
    """E(x) or U(x, t) with the network as it is, or in bfloat16 (`bf16`); no autocast is on around it.

    `exact`: energies come from the network in full precision all the same, and cost a forward pass; gradients do not.
    """

    energy: Any
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
        with torch.autocast(x.device.type, torch.bfloat16):
            return u, energy_and_grad(self.energy, x)[1]

    def __call__(self, x: Tensor, *t: Tensor) -> Tensor:
        """The energy in nats."""
        if not self.bf16 or self.exact:
            return self.energy(x, *t)
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.energy(x, *t)


@contextmanager
def at_precision(energy: Any, sampler: Any, x: Tensor, bf16: bool) -> Iterator[AtPrecision]:
    """The energy as the sampler should see it, with the caller's autocast off: a step's own arithmetic is x's."""
    with torch.autocast(x.device.type, enabled=False):
        yield AtPrecision(energy, bf16, reads_energies(sampler))
