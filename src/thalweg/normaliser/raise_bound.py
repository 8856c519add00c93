"""RAISE: a stochastic lower bound on log-likelihoods, by reverse annealing from the data (Burda et al. 2015).

The forward pass of annealed importance sampling, seen as a generator of x, has the law p_ann: its draws are those of an
annealed chain. Chains that run back from a row x, and their weights w (`ais.reverse`), give

    p_ann(x) = exp(-E(x)) / Z_0 · E[w],

so the log of a mean over chains is, by Jensen's inequality, too low on average. And p_ann is not the model: on rows
drawn from the model E[log p_ann] is the lower of the two, and on rows like them it is too, up to what p_ann has learned
of the data by accident. Annealing to log Z and -E - log Z err to the other side.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.core.rng import generator as address
from thalweg.energy.base import AnyEnergy, Discrete
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.normaliser.ais import EnergyPath, log_mean, reverse
from thalweg.normaliser.inputs import CheckedEnergy, rows, type_of_positions
from thalweg.normaliser.plan import make_plan
from thalweg.normaliser.states import annealing_of_states

PILOTS = 256  # particles that the levels are fitted by
PARTICLES = 2000  # that run back at once


class LikelihoodBound(NamedTuple):
    """The mean of a lower bound on log p over rows, in nats, and how well it is known."""

    mean: float
    error: float  # standard error over the rows
    log_prob: Float[Tensor, " n"]  # of each row, too low on average
    num_chains: int  # of each row
    num_steps: int  # levels

    def __str__(self) -> str:
        """The mean with its error, as a bound."""
        return f"log p >= {self.mean:.2f} +- {self.error:.2f} nats on average ({self.num_steps} levels)"


@torch.inference_mode(False)
def raise_bound(
    energy: AnyEnergy,
    x: Float[Tensor, "n *d"],
    *,
    seed: int = 0,
    num_chains: int = 10,
    num_steps: int = 1000,
    start: Float[Tensor, "m *d"] | None = None,
) -> LikelihoodBound:
    """A lower bound on the mean of log p(x) = -E(x) - log Z over rows, for an energy of states such as an RBM's.

    Costs n · num_chains · num_steps steps of the kernel: block Gibbs where the energy is bipartite.

    Args:
        energy: An energy that is `energy.base.Discrete`.
        x: The rows, states.
        seed: Of all draws.
        num_chains: Chains from each row.
        num_steps: Levels between the independent units and the energy. More make the bound tighter.
        start: Where chains begin that the independent units are fitted to; uniform states if not given. They may be
            training rows, never the rows x themselves.
    """
    if not isinstance(energy, Discrete):
        raise UserError("must be an energy of states", argument="energy", hint="take thalweg.log_z for any other")
    check.count(num_chains=num_chains, num_steps=num_steps)
    with FrozenEnergy.of(energy) as frozen_energy:
        like = type_of_positions(energy, x.shape[1:], True)
        checked, given, begin = CheckedEnergy(frozen_energy), rows("x", x, like), rows("start", start, like)
        assert given is not None
        annealing = annealing_of_states(
            checked, like, num_states=energy.num_states, start=begin, sampler=None, num_chains=PILOTS, seed=seed
        )
        plan = make_plan(annealing, PILOTS, address(seed, "raise-plan", device=like.device))
        path, size = plan.path(annealing, num_steps), max(1, PARTICLES // num_chains)
        found = torch.cat([_of_rows(path, part, num_chains, seed, k) for k, part in enumerate(given.split(size))])
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return LikelihoodBound(float(found.mean()), error, found, num_chains, num_steps)


def _of_rows(path: EnergyPath, x: Tensor, num_chains: int, seed: int, block: int) -> Float[Tensor, " n"]:
    """The bound of each row, float64."""
    back = reverse(path, x.repeat_interleave(num_chains, 0), address(seed, "raise", block, device=x.device))
    chains = back.log_w.unflatten(0, (len(x), num_chains))
    with torch.no_grad():
        u = path.energy(path.num_levels)(x).double()
    return torch.stack([torch.as_tensor(log_mean(row)) for row in chains.cpu()]) - u.cpu() - path.log_z
