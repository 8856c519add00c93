"""S1: first and second derivatives of every energy, in x and in parameters; stated moments and log Z."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from thalweg.core.rng import generator
from thalweg.energy import analytic
from thalweg.energy import wrappers as compose
from thalweg.energy.base import energy_and_grad
from thalweg.energy.ising import IsingEnergy
from thalweg.energy.networks.classifier import ClassifierEnergy
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.resnet import ResNetEnergy
from thalweg.energy.networks.tilted_gaussian import TiltedGaussianEnergy
from thalweg.energy.potts import PottsEnergy
from thalweg.energy.rbm import RBMEnergy

from . import densities
from .stats import assert_near

ANALYTIC = (analytic.Gaussian, analytic.GaussianMixture, densities.Banana, densities.LogGamma, densities.Funnel)
NETWORKS = {
    "mlp": MLPEnergy.example,
    "confined": TiltedGaussianEnergy.example,
    "conv": lambda: ConvEnergy(shape=(1, 8, 8), channels=(2, 2)),
    "conv of 3 classes": lambda: ConvEnergy(shape=(1, 8, 8), channels=(2, 2), num_outputs=3),
    "resnet": lambda: ResNetEnergy(shape=(1, 8, 8), channels=(2, 3)),
    "conditional": ClassifierEnergy.example,
    "restricted boltzmann machine": RBMEnergy.example,
    "ising": IsingEnergy.example,
    "potts": PottsEnergy.example,
}
WRAPPERS = (compose.Tempered, compose.Sum, compose.FixedLabels, compose.Clamped, compose.AtNoise)


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name]().double().eval()


def positions(energy, n=2):
    shape = getattr(energy, "shape", (2,))
    return torch.randn(n, *shape, generator=generator(1, "x"), dtype=torch.float64)


@pytest.mark.parametrize("cls", ANALYTIC)
def test_s1_analytic(cls):
    energy = cls.example()
    x = positions(energy, 3).requires_grad_(True)
    assert gradcheck(energy, x, rtol=1e-6)
    assert gradgradcheck(energy, x, rtol=1e-6)


@pytest.mark.parametrize("cls", WRAPPERS)
def test_s1_wrappers(cls):
    wrapper = cls.example()
    for part in getattr(wrapper, "energies", [wrapper.energy] if hasattr(wrapper, "energy") else []):
        if isinstance(part, torch.nn.Module):
            part.double()
    shape = (3,) if cls is compose.FixedLabels else (2,)
    x = torch.randn(3, *shape, generator=generator(1, "x"), dtype=torch.float64, requires_grad=True)
    assert gradcheck(wrapper, x, rtol=1e-6)
    assert gradgradcheck(wrapper, x, rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_s1_networks_in_x(name):
    energy = network(name)
    x = positions(energy).requires_grad_(True)
    assert gradcheck(energy, x, rtol=1e-6, fast_mode=True)
    assert gradgradcheck(energy, x, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_s1_networks_in_parameters(name):
    energy = network(name)
    names, values = zip(*energy.named_parameters(), strict=True)
    x = positions(energy)

    def of_parameters(*values):
        return functional_call(energy, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(of_parameters, values, rtol=1e-6, fast_mode=True)
    assert gradgradcheck(of_parameters, values, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_s1_score_is_minus_the_gradient(name):
    """energy_and_grad against a row-by-row Jacobian, which sees any leak between rows."""
    energy = network(name)
    x = positions(energy, 3)
    u, g = energy_and_grad(energy, x)
    jacobian = torch.autograd.functional.jacobian(energy, x)
    want = torch.zeros_like(jacobian)
    for b in range(len(x)):
        want[b, b] = g[b]
    assert torch.allclose(u, energy(x), rtol=1e-12)
    assert torch.allclose(jacobian, want, rtol=1e-10, atol=1e-14)


def analytic_score(name, energy, x):
    """-grad E, derived by hand."""
    match name:
        case "Gaussian":
            return -torch.linalg.solve(energy.covariance, (x - energy.mean).T).T
        case "Banana":
            second = x[:, 1] - energy.bend * (x[:, 0] ** 2 - energy.scale**2)
            first = -x[:, 0] / energy.scale**2 + 2 * energy.bend * x[:, 0] * second
            return torch.stack([first, -second], 1)
        case "LogGamma":
            return energy.alpha - x.exp()
        case "Funnel":
            v, rest = x[:, :1], x[:, 1:]
            first = -v / energy.scale**2 + 0.5 * (rest**2 * (-v).exp() - 1).sum(1, keepdim=True)
            return torch.cat([first, -rest * (-v).exp()], 1)
        case _:
            d = x[:, None] - energy.means
            weight = energy.weights * (-0.5 * d.square().sum(-1) / energy.scale**2).exp()
            return -(weight[..., None] * d).sum(1) / weight.sum(1, keepdim=True) / energy.scale**2


@pytest.mark.parametrize("cls", ANALYTIC)
def test_s1_analytic_score(cls):
    energy = cls.example()
    x = positions(energy, 20)
    _, g = energy_and_grad(energy, x)
    assert torch.allclose(-g, analytic_score(cls.__name__, energy, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", ANALYTIC)
def test_log_z_by_quadrature(cls):
    """The integral of exp(-E) on a fine grid, in two dimensions."""
    energy = densities.Funnel(scale=0.6) if cls is densities.Funnel else cls.example()
    n, span = 800, 40.0
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * span / n) - span
    rows = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_z = torch.logsumexp(-energy(rows), 0) + 2 * math.log(2 * span / n)
    assert abs(float(log_z - energy.log_z)) < 1e-6


@pytest.mark.parametrize("cls", ANALYTIC)
def test_draws_have_the_stated_moments(cls):
    energy = densities.Funnel(scale=0.6) if cls is densities.Funnel else cls.example()
    n = 200_000
    x = energy.draw(n, generator(3, cls.__name__))
    d = x - energy.mean
    for i in range(2):
        assert_near(d[:, i].mean(), 0.0, (energy.covariance[i, i] / n).sqrt())
        for j in range(2):
            product = d[:, i] * d[:, j]
            assert_near(product.mean(), float(energy.covariance[i, j]), product.std() / math.sqrt(n))
