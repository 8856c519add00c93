"""Warm-up: the step size of a Metropolis kernel is adapted to a mean acceptance, then stays as it is.

A chain that goes on adapting is not a Markov chain, and need not keep its law. So `warm_up` ends with a kernel of fixed
step size; the positions that it passed on the way are no samples.
"""

import dataclasses
import math
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator
from thalweg.energy.base import EnergyFn, lacking
from thalweg.sampler.base import Adaptable
from thalweg.sampler.chain import checked_energy
from thalweg.sampler.precision import reads_energies

K = TypeVar("K", bound=Adaptable[Any])
# Of dual averaging, as Hoffman & Gelman (2014, section 3.2.1) have them.
GAMMA, DELAY, KAPPA = 0.05, 10.0, 0.75


def warm_up(
    sampler: K,
    energy: EnergyFn,
    x: Float[Tensor, "b *d"],
    *,
    num_steps: int,
    seed: int = 0,
    target: float | None = None,
) -> tuple[K, Float[Tensor, "b *d"]]:
    """(The sampler with an adapted step size, positions after the steps), by dual averaging (Hoffman & Gelman 2014).

    With a_t the mean acceptance over chains of step t, and H_t the mean of target - a_t that weighs late steps more,

        log h_(t+1) = log(10 h_0) - sqrt(t) / 0.05 H_t,

    and the result is exp of a mean of log h_t that weighs late steps more. The energy is evaluated as by `run_chain`,
    and the same errors are raised. The mean acceptance of each step is read, for which a device waits.

    Args:
        sampler: A kernel with a Metropolis test and a number as step size, h_0: MALA, HMC, UnderdampedLangevin.
        energy: Any module or callable, (B, *) to (B,).
        x: Where the chains start.
        num_steps: Number of steps; some hundreds, less the more chains there are.
        seed: Seed of all draws.
        target: The mean acceptance to come to, the kernel's own `target_acceptance` by default.
    """
    check.count(num_steps=num_steps)
    seed = check.whole("seed", seed, 0, 2**64 - 1)
    _check(sampler)
    target = sampler.target_acceptance if target is None else target
    check.share(target=target)
    averaging = _DualAveraging(float(sampler.step_size), target)  # pyright: ignore[reportArgumentType]
    with checked_energy(sampler, energy, x) as checked:
        state = sampler.init(checked, x.detach().clone())
        for k in range(num_steps):
            kernel = _with_step_size(sampler, averaging.step_size)
            noise = kernel.draw(state, generator(seed, "warm-up", k, device=x.device))
            state, info = kernel.step(checked, state, noise)
            averaging.update(float(info.acceptance.double().mean()))
    return _with_step_size(sampler, math.exp(averaging.mean)), state.x


class _DualAveraging:
    """The step size of the next step, `step_size`, and the mean of its logarithm, `mean`."""

    def __init__(self, step_size: float, target: float):
        self.step_size, self.target, self.center = step_size, target, math.log(10 * step_size)
        self.missing = self.mean = 0.0
        self.t = 0

    def update(self, acceptance: float) -> None:
        """Take the mean acceptance of a step into account."""
        self.t += 1
        weight = 1 / (self.t + DELAY)
        self.missing = (1 - weight) * self.missing + weight * (self.target - acceptance)
        log_step = self.center - math.sqrt(self.t) / GAMMA * self.missing
        self.mean += self.t**-KAPPA * (log_step - self.mean)
        self.step_size = math.exp(log_step)


def _check(sampler: object) -> None:
    if isinstance(sampler, type) or not isinstance(sampler, Adaptable):
        found = kind_of(sampler) if isinstance(sampler, type) else lacking(sampler, Adaptable)
        raise UserError(f"must be a kernel with a step size and a target acceptance; {found}", argument="sampler")
    if not reads_energies(sampler):
        raise UserError("must have a Metropolis test", argument="sampler", value=sampler, hint="take adjusted=True")
    if callable(sampler.step_size):
        hint = "adapt a number, then give it a schedule"
        raise UserError("must be a number to be adapted", argument="step_size", value=sampler.step_size, hint=hint)
    check.positive(step_size=sampler.step_size)


def _with_step_size(sampler: K, step_size: float) -> K:
    return dataclasses.replace(sampler, step_size=step_size)  # pyright: ignore[reportArgumentType]
