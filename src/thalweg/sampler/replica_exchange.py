"""Replica exchange: chains at several temperatures, of which the hot ones cross barriers, exchange their positions."""

import itertools
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.errors import UserError, kind_of
from thalweg.energy.base import Discrete, EnergyFn, HasGradient
from thalweg.energy.wrappers import EnergyWrapper
from thalweg.sampler.base import HasChainTemperature, Info, Sampler, per_row
from thalweg.sampler.langevin import MALA, LangevinState, first_step


class ReplicaState(NamedTuple):
    """The coldest positions x (B, *), all replicas, and the number of the next step i ().

    Row b K + k of `replicas` is replica k of chain b, in units in which its temperature is 1 (`_AtTemperatures`).
    """

    x: Tensor
    replicas: LangevinState
    i: Tensor


@dataclass(frozen=True, kw_only=True)
class ReplicaExchange:
    """Replica exchange, parallel tempering: exact for prod_k exp(-E(x_k) / T_k) (Geyer 1991; Hukushima & Nemoto 1996).

    A step is one of the kernel for each replica, all in one call of the energy, then exchanges of neighbours: replicas
    k and k + 1 with probability min(1, exp((1/T_k - 1/T_(k+1)) (E(x_k) - E(x_(k+1))))). Even and odd k take turns, by
    which replicas travel further than by random pairs (Okabe et al. 2001; Syed et al. 2022). Choose temperatures at
    which `swap_acceptance` is .2 or more everywhere, and of which the highest has no barriers.

    Positions are real: a kernel works on x / sqrt(T_k), so that its steps are larger where it is hotter. States of a
    `Discrete` energy stay as they are.

    Args:
        sampler: The kernel, at temperature 1, whose state is a `LangevinState`: MALA, HMC or GibbsWithGradients.
        temperatures: T_k in nats, the first 1, increasing.
    """

    sampler: Sampler[LangevinState]
    temperatures: Sequence[float] = (1.0, 2.0, 4.0)

    def __post_init__(self):
        t = self.temperatures
        good = isinstance(t, Sized) and len(t) >= 2 and t[0] == 1 and math.isfinite(t[-1])
        if not good or any(not a < b for a, b in itertools.pairwise(t)):
            condition = "must be two or more increasing numbers, the first 1"
            raise UserError(condition, argument="temperatures", value=t)
        if not isinstance(self.sampler, HasChainTemperature) or self.sampler.temperature != 1:
            hint = "the replicas' temperatures are ReplicaExchange's own"
            raise UserError("must be a kernel at temperature 1", argument="sampler", value=self.sampler, hint=hint)

    @classmethod
    def example(cls) -> Self:
        """Three temperatures, with steps that suit energies of unit scale."""
        return cls(sampler=MALA(step_size=0.05))

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> ReplicaState:
        """The state with all replicas of a chain at its position."""
        return self.init_replicas(energy, x.unsqueeze(1).expand(-1, len(self.temperatures), *x.shape[1:]))

    def init_replicas(self, energy: EnergyFn, positions: Float[Tensor, "b k *d"]) -> ReplicaState:
        """The state at a position for each replica, such as `positions` of another state."""
        x = positions.detach()
        tempered = _AtTemperatures(energy, self.temperatures)
        replicas = self.sampler.init(tempered, (x / tempered.scale(x)).flatten(0, 1))
        if not isinstance(replicas, LangevinState):
            condition = f"must have a LangevinState, as MALA has; the state is {kind_of(replicas)}"
            raise UserError(condition, argument="sampler", value=self.sampler)
        return ReplicaState(x[:, 0], replicas, first_step(x))

    def positions(self, energy: EnergyFn, state: ReplicaState) -> Float[Tensor, "b k *d"]:
        """The positions of all replicas."""
        y = self._by_chain(state.replicas.x)
        return y * _AtTemperatures(energy, self.temperatures).scale(y)

    def draw(self, state: ReplicaState, generator: Generator) -> tuple[Tensor, ...]:
        """The kernel's noise for each replica, (B, K, *), and a uniform number for each pair, (B, K - 1)."""
        x, many = state.x, len(self.temperatures)
        noise = self.sampler.draw(state.replicas._replace(x=x.repeat_interleave(many, 0)), generator)
        v = torch.rand(len(x), many - 1, generator=generator, dtype=x.dtype, device=x.device)
        return *(self._by_chain(z) for z in noise), v

    def step(self, energy: EnergyFn, state: ReplicaState, noise: tuple[Tensor, ...]) -> tuple[ReplicaState, Info]:
        """A step of the kernel, then exchanges. What `Info` tells is of the coldest replica."""
        *parts, v = noise
        tempered = _AtTemperatures(energy, self.temperatures)
        replicas = state.replicas._replace(i=state.i)  # a chain that continues another numbers this state only
        replicas, info = self.sampler.step(tempered, replicas, tuple(z.flatten(0, 1) for z in parts))
        pair = torch.arange(v.shape[1], device=v.device)
        swap = (v < self._swap_acceptance(replicas)) & (pair % 2 == state.i % 2)
        replicas = self._exchanged(tempered, replicas, swap)
        x = self._by_chain(replicas.x)[:, 0]
        return ReplicaState(x, replicas, state.i + 1), Info(*(self._by_chain(each)[:, 0] for each in info))

    def swap_acceptance(self, state: ReplicaState) -> Float[Tensor, "b k-1"]:
        """The probability with which each pair of neighbours would be exchanged at these positions."""
        return self._swap_acceptance(state.replicas)

    def _swap_acceptance(self, replicas: LangevinState) -> Tensor:
        t = _numbers(self.temperatures, replicas.u)
        u = self._by_chain(replicas.u) * t
        log_ratio = (1 / t[:-1] - 1 / t[1:]) * (u[:, :-1] - u[:, 1:])
        return torch.nan_to_num(log_ratio.clamp(max=0).exp())

    def _exchanged(self, tempered: "_AtTemperatures", replicas: LangevinState, swap: Tensor) -> LangevinState:
        """The replicas after the exchanges `swap` (B, K - 1), of which no two are neighbours."""
        up, down = (torch.nn.functional.pad(swap.long(), sides) for sides in ((0, 1), (1, 0)))
        source = torch.arange(up.shape[1], device=swap.device) + up - down
        goes = (up + down) > 0

        def taken(values: Tensor, unit: Tensor) -> Tensor:
            """The values, of replica k in units of unit[k], where their replica goes."""
            old = self._by_chain(values)
            index = source.reshape(*source.shape, *[1] * (old.ndim - 2)).expand_as(old)
            new = (old * unit).gather(1, index) / unit
            return torch.where(goes.reshape(*goes.shape, *[1] * (old.ndim - 2)), new, old).flatten(0, 1)

        scale = tempered.scale(self._by_chain(replicas.x))
        t = _numbers(self.temperatures, replicas.u)
        force = t.reshape(scale.shape) / scale
        return replicas._replace(x=taken(replicas.x, scale), u=taken(replicas.u, t), g=taken(replicas.g, force))

    def _by_chain(self, rows: Tensor) -> Tensor:
        """(B K, *) to (B, K, *)."""
        return rows.unflatten(0, (-1, len(self.temperatures)))


@dataclass(frozen=True)
class _AtTemperatures(EnergyWrapper):
    """E(s_k y) / T_k in row b K + k, s_k = sqrt(T_k); s_k = 1 for a discrete energy."""

    energy: EnergyFn
    temperatures: Sequence[float]

    keeps = (HasGradient, Discrete)

    def scale(self, like: Float[Tensor, "b k *d"]) -> Tensor:
        """s (K, 1, …), which broadcasts against `like`."""
        t = _numbers([1.0 if isinstance(self.energy, Discrete) else t for t in self.temperatures], like)
        return t.sqrt().reshape(-1, *[1] * (like.ndim - 2))

    def _of_rows(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(T (B K,), s (B K, 1, …)) of each row."""
        num_chains = len(y) // len(self.temperatures)
        s = self.scale(y.unsqueeze(0)).flatten().repeat(num_chains)
        return _numbers(self.temperatures, y).repeat(num_chains), per_row(s, y)

    def __call__(self, y: Float[Tensor, "bk *d"]) -> Float[Tensor, " bk"]:
        """The energy in nats."""
        t, s = self._of_rows(y)
        return self.energy(s * y) / t

    def _value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor] | None:
        t, s = self._of_rows(y)
        both: Any = cast(HasGradient, self.energy).value_and_grad(s * y)
        return None if both is None else (both[0] / t, both[1] * (s / per_row(t, y)))


def _numbers(values: Sequence[float], like: Tensor) -> Float[Tensor, " k"]:
    """The numbers on the device of `like`, which does not wait for them as it would for a copy."""
    return torch.stack([like.new_full((), value) for value in values])
