"""Gibbs with gradients: a sampler of discrete energies that lets the gradient choose the unit to change.

The energy must be `thalweg.energy.base.Discrete`: its numbers are 0 or 1, or the K > 2 states of a unit are one-hot.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Discrete, EnergyFn, energy_and_grad
from thalweg.sampler.base import Info, row_norm
from thalweg.sampler.langevin import LangevinState, first_step
from thalweg.sampler.schedule import Value, check_value, value_at


@dataclass(frozen=True, kw_only=True)
class GibbsWithGradients:
    """Changes one unit a step, exact for exp(-E / T) on the states (Grathwohl et al. 2021). One gradient a step.

    A move is another state of one unit. With d the change of E that the gradient predicts for a move,

        q(move | x) ∝ exp(-d / (2 T)),

    which is locally balanced (Zanella 2020). It is accepted with probability

        min(1, exp((E(x) - E(x')) / T) q(back | x') / q(move | x)).

    `draw` gives uniform numbers in float64, as a move may be rarer than float32 can say. UserError for an energy that
    is not `Discrete` or positions that are no states.

    Args:
        temperature: T in nats, a number, a 0-d tensor or a schedule.
    """

    temperature: Value = 1.0

    def __post_init__(self):
        check_value(check.positive, temperature=self.temperature)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"]) -> LangevinState:
        """The state at x, for one gradient. On a CPU the values of x are checked."""
        # An objective may ask for a state of another energy, to learn its shapes; a device would be waited for.
        if isinstance(energy, Discrete) and x.device.type == "cpu":
            _check_states(x, energy.num_states)
        return LangevinState(x.detach(), *energy_and_grad(energy, x), first_step(x))

    def draw(self, state: LangevinState, generator: Generator) -> tuple[Tensor, Tensor]:
        """(r, v), (B,) each: uniform numbers for the move and for the test."""
        x = state.x
        numbers = torch.rand(len(x), 2, generator=generator, dtype=torch.float64, device=x.device)
        return numbers[:, 0], numbers[:, 1]

    def log_proposal(self, state: LangevinState, num_states: int) -> Float[Tensor, "b m"]:
        """log q(move | x) in float64: of each unit's flip, (B, D), or of its K states, (B, M K), -inf where it is."""
        x, g = state.x.double(), state.g.double()
        if num_states == 2:
            fall = (2 * x - 1) * g
        else:
            fall = ((x * g).sum(-1, keepdim=True) - g).masked_fill(x > 0.5, -torch.inf)
        return torch.log_softmax(fall.flatten(1) / (2 * value_at(self.temperature, state.i)), 1)

    def log_ratio(
        self, state: LangevinState, end: LangevinState, forth: Float[Tensor, " b"], back: Float[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """log p(x') q(back | x') / (p(x) q(move | x)), from log q of the move and of the way back."""
        return (state.u.double() - end.u.double()) / value_at(self.temperature, state.i) + back - forth

    def step(self, energy: EnergyFn, state: LangevinState, noise: tuple[Tensor, ...]) -> tuple[LangevinState, Info]:
        """Choose a move, then accept each chain on its own uniform number."""
        num_states = _num_states(energy)
        r, v = noise
        forth = self.log_proposal(state, num_states)
        total = forth.exp().cumsum(1)
        move = (
            torch.searchsorted(total, r[:, None] * total[:, -1:], right=True).squeeze(1).clamp(max=total.shape[1] - 1)
        )
        x = moved(state.x, move, num_states)
        u, g = energy_and_grad(energy, x)
        end = state._replace(x=x, u=u, g=g)
        back = self.log_proposal(end, num_states)
        log_ratio = self.log_ratio(state, end, _at(forth, move), _at(back, _back(state.x, move, num_states)))
        acceptance = torch.where(u.isfinite() & ~log_ratio.isnan(), log_ratio.clamp(max=0).exp(), 0)
        accept = v < acceptance
        rows = accept.reshape(-1, *[1] * (x.ndim - 1))
        x, u, g = torch.where(rows, x, state.x), torch.where(accept, u, state.u), torch.where(rows, g, state.g)
        return LangevinState(x, u, g, state.i + 1), Info(acceptance=acceptance.to(u.dtype), grad_norm=row_norm(g))


def moved(x: Float[Tensor, "b *d"], move: Int[Tensor, " b"], num_states: int) -> Float[Tensor, "b *d"]:
    """x after the moves, numbered as `log_proposal` has them."""
    if num_states == 2:
        return torch.where(_chosen(move, x.flatten(1).shape[1]).reshape(x.shape), 1 - x, x)
    units = x.reshape(len(x), -1, num_states)
    unit = _chosen(move // num_states, units.shape[1])
    new = _chosen(move % num_states, num_states).to(x.dtype)
    return torch.where(unit[:, :, None], new[:, None], units).reshape(x.shape)


def _back(x: Tensor, move: Tensor, num_states: int) -> Tensor:
    """The number of the move that undoes `move` from x."""
    if num_states == 2:
        return move
    unit = move // num_states
    states = x.reshape(len(x), -1, num_states).argmax(-1)
    return unit * num_states + _at(states, unit)


def _at(rows: Tensor, column: Tensor) -> Tensor:
    """The number of each row in its column, (B,)."""
    return rows.gather(1, column[:, None]).squeeze(1)


def _chosen(number: Tensor, of: int) -> Bool[Tensor, "b n"]:
    """(B, of): true in the column of each row's number."""
    return torch.arange(of, device=number.device) == number[:, None]


def _check_states(x: Tensor, num_states: int) -> None:
    good = num_states == 2 or x.shape[-1] == num_states
    if good:
        whole = (x == 0) | (x == 1)
        good = bool(whole.all()) and (num_states == 2 or bool((x.sum(-1) == 1).all()))
    if not good:
        states = "0 or 1" if num_states == 2 else f"one-hot over {num_states} states in their last dimension"
        raise UserError(f"must be states, {states}", argument="x", hint="round them")


def _num_states(energy: object) -> int:
    """K; UserError for an energy that is not discrete."""
    if not isinstance(energy, Discrete):
        raise UserError("must be Discrete, with `num_states`", argument="energy", hint="take MALA for any other")
    return energy.num_states
