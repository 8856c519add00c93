"""Annealed importance sampling along a path of energies (Neal 2001), forward and reverse.

For energies E_0 … E_K, where log Z_0 is known and draws of exp(-E_0) / Z_0 are exact, and kernels T_k that leave
exp(-E_k) invariant, the forward pass draws x_0 from E_0 and for k = 1 … K

    log w += E_{k-1}(x) - E_k(x),    x ~ T_k(x, .)                so that E[w] = Z_K / Z_0.

The reverse pass starts from draws of exp(-E_K) / Z_K and for k = K … 1

    log w += E_k(x) - E_{k-1}(x),    x ~ T_{k-1}(x, .)            so that E[w] = Z_0 / Z_K.

By Jensen's inequality the log of a mean of w is too low on average: the forward pass bounds log Z_K from below, the
reverse pass from above (bidirectional Monte Carlo; Grosse et al. 2015, 2016). Both hold for any number of steps. How
the energies follow from one another is the path's own affair.
"""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.errors import UserError
from thalweg.energy.base import Capability, EnergyFn
from thalweg.sampler.base import AnnealedSampler, GradientOnly, HasChainTemperature, Sampler


class EnergyPath(Protocol):
    """Energies E_0 … E_K, (B, *) to (B,) nats, and a kernel for each of E_1 … E_K."""

    @property
    def num_levels(self) -> int:
        """K, 1 or more."""
        ...

    @property
    def log_z(self) -> float:
        """log Z_0 in nats, known."""
        ...

    def draw(self, n: int, generator: Generator, /) -> Tensor:
        """n exact draws (n, *) of exp(-E_0) / Z_0."""
        ...

    def energy(self, k: int, /) -> EnergyFn:
        """E_k, k = 0 … K. A pass asks once each time that it comes to a level."""
        ...

    def kernel(self, k: int, /) -> Sampler[Any]:
        """A sampler that leaves exp(-E_k) invariant, k = 1 … K; reversible, where both passes are to be combined."""
        ...


@runtime_checkable
class HasEnergies(Protocol, metaclass=Capability):
    """A sampler's state that holds the energies u (B,) of its positions, so that they are not computed again."""

    @property
    def u(self) -> Tensor:
        """E(x), (B,) nats."""
        ...


class Particles(NamedTuple):
    """What a pass leaves."""

    log_w: Float[Tensor, " n"]  # logarithms of the weights, float64, nats
    x: Tensor  # (n, *) positions at the last level
    acceptance: Float[Tensor, " k"]  # mean acceptance at each level, in the order of the pass


def forward(path: EnergyPath, n: int, generator: Generator, *, num_steps: int = 1) -> Particles:
    """n independent particles from E_0 to E_K; E[exp(log_w)] = Z_K / Z_0. `num_steps` of the kernel a level."""
    x = path.draw(n, generator)
    return _pass(path, x, range(path.num_levels + 1), generator, num_steps)


def reverse(path: EnergyPath, x: Tensor, generator: Generator, *, num_steps: int = 1) -> Particles:
    """Particles from draws x (n, *) of E_K down to E_0; E[exp(log_w)] = Z_0 / Z_K if x follow exp(-E_K) / Z_K."""
    return _pass(path, x, range(path.num_levels, -1, -1), generator, num_steps)


def move(path: EnergyPath, k: int, x: Tensor, generator: Generator, num_steps: int) -> Tensor:
    """Positions after `num_steps` of the kernel of level k, 1 … K."""
    energy, kernel = path.energy(k), require_exact(path.kernel(k))
    state = kernel.init(energy, x)
    for _ in range(num_steps):
        state, _ = kernel.step(energy, state, kernel.draw(state, generator))
    return state.x


def _pass(path: EnergyPath, x: Tensor, levels: range, generator: Generator, num_steps: int) -> Particles:
    """From level to level; the energy of the new one is what its kernel's state holds, where it does."""
    u = path.energy(levels[0])(x).double()
    log_w, acceptance = torch.zeros_like(u), []
    for k in levels[1:]:
        energy = path.energy(k)
        if k == 0:
            log_w = _weighted(log_w, u, energy(x).double())
            break
        kernel = require_exact(path.kernel(k))
        state = kernel.init(energy, x)
        log_w = _weighted(log_w, u, _energies(energy, state))
        rates = []
        for _ in range(num_steps):
            state, info = kernel.step(energy, state, kernel.draw(state, generator))
            rates.append(info.acceptance.mean())
        x, u = state.x, _energies(energy, state)
        acceptance.append(torch.stack(rates).mean())
    return Particles(log_w, x, torch.stack(acceptance) if acceptance else log_w.new_empty(0))


def _weighted(log_w: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """log w + E_before - E_after; a particle of weight zero keeps it. UserError where an energy is NaN."""
    log_w = torch.where(log_w == -torch.inf, log_w, log_w + (before - after))
    if bool(log_w.isnan().any()):
        condition = f"must be a number; it is NaN for {int(log_w.isnan().sum())} of {len(log_w)} chains"
        raise UserError(condition, argument="energy", hint="give infinity where the law has no mass")
    return log_w


def _energies(energy: EnergyFn, state: Any) -> Float[Tensor, " n"]:
    return (state.u if isinstance(state, HasEnergies) else energy(state.x)).double()


def require_exact(kernel: object) -> Sampler[Any]:
    """The kernel; UserError for one that does not leave exp(-E) invariant: unadjusted, annealed, or tempered."""
    if isinstance(kernel, type) or not isinstance(kernel, Sampler) or isinstance(kernel, AnnealedSampler):
        raise UserError("must be a sampler of E(x)", argument="kernel", hint="such as MALA(step_size=0.1)")
    if isinstance(kernel, GradientOnly) and kernel.gradient_only:
        text = f"must leave exp(-E) invariant; {type(kernel).__name__} reads no energies, so its law is off by its step"
        raise UserError(text, argument="kernel", hint="take MALA, HMC or Gibbs")
    temperature = kernel.temperature if isinstance(kernel, HasChainTemperature) else 1.0
    if callable(temperature) or float(1.0 if temperature is None else temperature) != 1:
        text, hint = "must have temperature 1", "divide the energy by the temperature"
        raise UserError(text, argument="kernel.temperature", value=temperature, hint=hint)
    return kernel


def log_mean(log_w: Float[Tensor, " n"]) -> float:
    """log of the mean of w, from log w."""
    return float(torch.logsumexp(log_w, 0)) - math.log(len(log_w))


def effective_size(log_w: Float[Tensor, " n"]) -> float:
    """(sum w)² / sum w², the number of equal weights of the same accuracy; 0 where all weights are zero."""
    if not bool((log_w > -torch.inf).any()):
        return 0.0
    return math.exp(2 * float(torch.logsumexp(log_w, 0)) - float(torch.logsumexp(2 * log_w, 0)))
