"""Restricted Boltzmann machines small enough to count: their laws, transition matrices and gradients."""

import torch
from torch import Tensor

from thalweg.energy.enumeration import all_states
from thalweg.energy.rbm import RBMEnergy


def machine(shape: tuple[int, ...] = (6,), num_hidden: int = 4, seed: int = 0, scale: float = 1.0) -> RBMEnergy:
    """Strongly joined, with biases, in float64."""
    torch.manual_seed(seed)
    energy = RBMEnergy(shape=shape, num_hidden=num_hidden, weight_std=scale).double()
    with torch.no_grad():
        energy.visible_bias.copy_(0.5 * torch.randn(len(energy.visible_bias)))
        energy.hidden_bias.copy_(0.5 * torch.randn(num_hidden))
    return energy


def states(energy: RBMEnergy) -> Tensor:
    """Every position, (2^D, *shape)."""
    return all_states(len(energy.visible_bias)).unflatten(1, energy.shape)


@torch.no_grad()
def log_law(energy: RBMEnergy) -> Tensor:
    """log p of every state, (2^D,)."""
    return torch.log_softmax(-energy(states(energy)), 0)


def law(log_odds: Tensor, states: Tensor) -> Tensor:
    """p(state | row), (rows, states), for independent units of these log-odds."""
    p = log_odds.flatten(1).sigmoid()
    return torch.exp(p.log() @ states.T + (1 - p).log() @ (1 - states).T)


@torch.no_grad()
def matrix(energy: RBMEnergy) -> Tensor:
    """T(v, v') = sum_h p(h | v) p(v' | h), (2^D, 2^D)."""
    h = all_states(energy.num_hidden)
    up = law(energy.conditionals.hidden(states(energy)), h)
    return up @ law(energy.conditionals.visible(h), states(energy).flatten(1))


@torch.no_grad()
def gradients(energy: RBMEnergy) -> Tensor:
    """dE(v)/d(W, b, c) of every state, (2^D, P), by hand."""
    v = states(energy).flatten(1)
    on = torch.sigmoid(energy.hidden_bias + v @ energy.weight.T)
    return -torch.cat([(on[:, :, None] * v[:, None]).flatten(1), v, on], 1)
