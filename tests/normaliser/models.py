"""Energies whose constants are known: in closed form, by counting states, or on a grid."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.energy.analytic import GaussianMixture
from thalweg.energy.enumeration import all_states
from thalweg.energy.ising import IsingEnergy
from thalweg.energy.networks.tilted_gaussian import TiltedGaussianEnergy
from thalweg.energy.potts import PottsEnergy
from thalweg.energy.rbm import RBMEnergy


class Known(NamedTuple):
    """An energy, the shape of its positions, log Z, and exact draws where there are any."""

    energy: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    log_z: float
    draw: Callable[[int, torch.Generator], Tensor] | None = None


def gaussian(dim: int = 50, condition: float = 100.0, mean: float = 20.0) -> Known:
    """Far from 0, rotated, of variances from 1 to `condition`."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
    variances = torch.logspace(0, math.log10(condition), dim, dtype=torch.float64)
    half = basis / variances.sqrt()

    def draw(n, generator):
        z = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        return mean + (z * variances.sqrt()) @ basis.T

    log_z = 0.5 * (dim * math.log(2 * math.pi) + float(variances.log().sum()))
    return Known(lambda x: 0.5 * ((x - mean) @ half).square().sum(1), (dim,), log_z, draw)


def analytic(energy) -> Known:
    return Known(energy, energy.shape, float(energy.log_z), energy.draw)


def two_modes(distance: float, dim: int = 2) -> Known:
    """Equal Gaussians of deviation 0.5, one of them at the origin."""
    means = torch.zeros(2, dim)
    means[1, 0] = distance
    return analytic(GaussianMixture(means, scale=0.5))


def machine(dim: int, num_hidden: int, std: float) -> Known:
    torch.manual_seed(0)
    energy = RBMEnergy(shape=(dim,), num_hidden=num_hidden, weight_std=std).double().requires_grad_(False)
    energy.visible_bias.copy_(0.5 * torch.randn(dim))
    energy.hidden_bias.copy_(0.5 * torch.randn(num_hidden))

    def draw(n, generator):  # the hidden units by counting, then the visible ones
        h = all_states(num_hidden)
        log_p = h @ energy.hidden_bias + torch.nn.functional.softplus(energy.visible_bias + h @ energy.weight).sum(1)
        chosen = h[torch.multinomial(torch.softmax(log_p, 0), n, replacement=True, generator=generator)]
        p = energy.conditionals.visible(chosen).sigmoid()
        return (torch.rand(p.shape, generator=generator, dtype=torch.float64) < p).double()

    return Known(energy, (dim,), float(energy.log_z()), draw)


def counted(energy, shape: tuple[int, ...], states: Tensor) -> Known:
    """By a sum over all states."""
    u = energy(states)

    def draw(n, generator):
        return states[torch.multinomial(torch.softmax(-u, 0), n, replacement=True, generator=generator)]

    return Known(energy, shape, float(torch.logsumexp(-u, 0)), draw)


def ising() -> Known:
    energy = IsingEnergy(coupling=0.4).double().requires_grad_(False)
    return counted(energy, (4, 4), all_states(16).unflatten(1, (4, 4)))


def potts() -> Known:
    energy = PottsEnergy(shape=(2, 3, 3), coupling=0.7, periodic=False).double().requires_grad_(False)
    return counted(energy, (2, 3, 3), all_states(6, 3).unflatten(1, (2, 3)))


def network() -> Known:
    """A perceptron in float32, times a Gaussian; the integral by the rectangle rule, which is exact to 1e-6 here."""
    torch.manual_seed(0)
    energy = TiltedGaussianEnergy(shape=(2,), width=32, depth=2, gain=4.0).requires_grad_(False)
    line = torch.linspace(-8, 8, 801)
    u = torch.cat([energy(rows) for rows in torch.cartesian_prod(line, line).split(1 << 16)]).double()
    return Known(energy, (2,), float(torch.logsumexp(-u, 0)) + 2 * math.log(16 / 800))


def box() -> Known:
    """exp(c x) on [0, 1] for c of several sizes and signs: log Z = sum log((e^c - 1) / c); walls are near or far."""
    c = torch.tensor([-300.0, -30.0, -1.0, 2.0, 100.0], dtype=torch.float64)
    log_z = (torch.where(c > 0, c, 0) + torch.log(-torch.expm1(-c.abs())) - c.abs().log()).sum()
    return Known(lambda x: -(x @ c), (5,), float(log_z))
