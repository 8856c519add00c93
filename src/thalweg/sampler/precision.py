"""Chains with the network in bfloat16 and everything else in the type of the positions.

bfloat16 has eight significant bits: an energy of 300 nats has steps of two. So only the network's gradient is computed
in it. Positions, noise and updates keep their type, and a Metropolis test reads energies in full precision. The test is
then exact for exp(-E) whatever the gradient of the proposal is, as long as it is a function of the position; a rough
one lowers acceptance only. An unadjusted chain has no such correction; its error is measured
(docs/experiments/claims.md).

Whether bfloat16 is faster depends on the processor, the network and the number of chains: `faster_in_bf16` measures it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from thalweg.core.device import autocast, synchronise
from thalweg.core.rng import generator
from thalweg.energy.base import (
    AnyEnergy,
    Bipartite,
    Discrete,
    EnergyFn,
    HasGradient,
    HasNoiseLevels,
    energy_and_grad,
)
from thalweg.energy.engine.discovery import find_modules
from thalweg.energy.wrappers import EnergyWrapper
from thalweg.sampler.base import GradientOnly, Sampler

WARM, TIMED = 2, 5  # steps in each precision; the first of a chain is slower than the others
MUST_SAVE = 0.9  # of the time in full precision: for less it is not worth the lost digits
HOPELESS = 2.0  # times the time in full precision: bfloat16 is emulated, and timing it more would take long
_found: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]] = WeakKeyDictionary()


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

    keeps = (Bipartite, Discrete, HasNoiseLevels)

    def __post_init__(self):
        self._gradient = self.energy.value_and_grad if isinstance(self.energy, HasGradient) else None

    def value_and_grad(self, x: Tensor, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E(x), dE/dx) by the energy's own short way; or E(x) in full precision, dE/dx in bfloat16."""
        if not self.bf16:
            return None if self._gradient is None else self._gradient(x, *t)
        if not self.exact and self._gradient is not None:
            with autocast(x.device, True):
                return self._gradient(x, *t)
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


def faster_in_bf16(sampler: Sampler[Any], energy: EnergyFn, x: Tensor, network: object) -> bool:
    """Whether a step from x takes less than `MUST_SAVE` of the time in bfloat16 that it takes as the network is.

    Costs the time of 7 steps in each precision, of 2 where bfloat16 is emulated. The answer is kept with the first
    module in `network`, for this kind of sampler, positions of this shape, type and device, and this
    number of threads. False without asking where there is no module, or x is float64, which autocast leaves as it is.

    Args:
        sampler: The sampler.
        energy: The energy as the chain will evaluate it, frozen.
        x: Positions.
        network: The energy in which modules are looked for.
    """
    modules = find_modules(network)
    if not modules or x.dtype == torch.float64:
        return False
    known = _found.setdefault(modules[0], {})
    case = (type(sampler), x.shape, x.dtype, x.device, torch.get_num_threads())
    if case not in known:
        known[case] = _saves(sampler, energy, x)
    return known[case]


def _saves(sampler: Sampler[Any], energy: EnergyFn, x: Tensor) -> bool:
    energies = {bf16: AtPrecision(energy, bf16, reads_energies(sampler)) for bf16 in (False, True)}
    state = sampler.init(energies[False], x)
    noise = sampler.draw(state, generator(0, "precision", device=x.device))
    alone = x.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter  # CPU time feels other processes less
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for i in range(WARM + TIMED):  # in turns, so that other work on the machine slows both
        for bf16, times in seconds.items():
            start = clock()
            sampler.step(energies[bf16], state, noise)
            synchronise(x.device)
            times.append(clock() - start)
        if i == WARM - 1 and min(seconds[True]) > HOPELESS * min(seconds[False]):
            return False
    return min(seconds[True][WARM:]) < MUST_SAVE * min(seconds[False][WARM:])
