"""The likelihood of an energy of states whose constant is exact: probabilities of states, not densities."""

import copy
import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from thalweg.core.errors import UserError
from thalweg.energy.base import Capability, HasExactLogZ


@runtime_checkable
class HasStates(Protocol, metaclass=Capability):
    """A model whose energy may be of states that can be counted. An evaluation asks, for its exact likelihood."""

    @property
    def countable(self) -> HasExactLogZ | None:
        """The energy of states; None where it is another."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Data units to states."""
        ...


@torch.no_grad()
def exact_likelihood(model: HasStates, x: Tensor, samples: Tensor, train: Tensor) -> dict[str, Any] | None:
    """Mean log p of the states of x in nats, exact; beside it independent units fitted to the training rows.

    None where the model's energy is not one of states, or there are too many to count. In float64, on the CPU.
    """
    energy = model.countable
    if not isinstance(energy, nn.Module):
        return None
    energy = copy.deepcopy(energy).to("cpu", torch.float64)
    assert isinstance(energy, HasExactLogZ)
    try:
        log_z = float(energy.log_z())
    except UserError:
        return None
    states = {name: model.encode(rows).cpu().double() for name, rows in (("unseen", x), ("samples", samples))}
    log_p = {name: -torch.cat([energy(part) for part in z.split(1000)]) - log_z for name, z in states.items()}
    d = x[0].numel()
    row: dict[str, Any] = {
        "num": len(x),
        "log_z": log_z,
        "nats": log_p["unseen"].mean().item(),
        "nats_error": (log_p["unseen"].std() / math.sqrt(len(x))).item(),
        "nats_samples": log_p["samples"].mean().item(),
    }
    if energy.num_states == 2:
        alone = independent_log_prob(model.encode(train).cpu(), states["unseen"])
        row |= {"nats_independent": alone.mean().item(), "bits_per_dim": bits_per_dim_of_states(row["nats"], d)}
        row["bits_per_dim_independent"] = bits_per_dim_of_states(row["nats_independent"], d)
        row["bits_per_dim_uniform"] = 1.0
    return row


def independent_log_prob(train: Tensor, states: Tensor) -> Tensor:
    """log p (n,) in nats of binary states under independent units with the training rows' shares, smoothed by 1/2."""
    share = (train.flatten(1).double().sum(0) + 0.5) / (len(train) + 1)
    log_odds = share.logit()
    return states.flatten(1).double() @ log_odds - softplus(log_odds).sum()


def bits_per_dim_of_states(nats: float, d: int) -> float:
    """-log2 p a unit."""
    return -nats / (d * math.log(2))
