"""S4, S5, S6, S12, S16, S18: the leapfrog path, and Hamiltonian Monte Carlo with its mutants."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.energy.base import energy_and_grad
from thalweg.sampler import hmc
from thalweg.sampler.chain import run_chain, transitions
from thalweg.sampler.hmc import HMC, Phase, leapfrog

from .invariance import TARGETS, DiagonalGaussian, check_invariance, check_one_by_one, exact_draws
from .stats import assert_near

STEP = {"gaussian": 0.12, "mixture": 0.6, "banana": 0.6, "log-gamma": 0.7}


def kernel(name: str, cls: type[HMC] = HMC, num_leapfrog: int = 3) -> HMC:
    return cls(step_size=STEP[name], num_leapfrog=num_leapfrog)


class Quartic:
    """E(x) = sum x_i⁴ / 4 + x_1 x_2 / 2; its gradient keeps the graph, for the Jacobian of a path."""

    def __call__(self, x: Tensor) -> Tensor:
        return 0.25 * x.pow(4).sum(1) + 0.5 * x[:, 0] * x[:, 1]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), x.pow(3) + 0.5 * x.flip(1)


def at(energy, x: Tensor, p: Tensor) -> Phase:
    return Phase(x, p, *energy_and_grad(energy, x))


def phases(n: int = 100) -> tuple[Tensor, Tensor]:
    return torch.randn(2, n, 2, generator=generator(5, "phases"), dtype=torch.float64).unbind(0)


def hamiltonian(phase: Phase) -> Tensor:
    return phase.u + 0.5 * phase.p.square().sum(1)


def error_slope() -> float:
    """Of the log of the mean error of H after a time of 1, in log h."""
    sizes, errors = (0.1, 0.05, 0.025, 0.0125), []
    for h in sizes:
        start = at(Quartic(), *phases())
        errors.append((hamiltonian(hmc.leapfrog(Quartic(), start, h, round(1 / h))) - hamiltonian(start)).abs().mean())
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.stack(errors).log()
    d = x - x.mean()
    return float((d * y).sum() / d.square().sum())


def test_s4_the_error_of_h_falls_as_the_square_of_the_step(monkeypatch):
    """S4: slope 2.00 +- 0.05; mutant: momenta and positions in turn without half steps (Euler), of first order."""
    assert abs(error_slope() - 2) < 0.05

    def euler(energy, start, step_size, num_steps):
        x, p, _, g = start
        for _ in range(num_steps):
            p = p - step_size * g
            x = x + step_size * p
            _, g = energy_and_grad(energy, x)
        return at(energy, x, p)

    monkeypatch.setattr(hmc, "leapfrog", euler)
    assert abs(error_slope() - 2) > 0.5


def test_s5_a_path_goes_back_the_way_it_came():
    """S5: 20 steps there and 20 back on a quartic energy, to 1e-12; a step size that differs is seen."""
    x, p = phases()
    end = leapfrog(Quartic(), at(Quartic(), x, p), 0.1, 20)
    assert float((end.x - x).abs().max()) > 1
    for h, holds in ((0.1, True), (0.1001, False)):
        back = leapfrog(Quartic(), end._replace(p=-end.p), h, 20)
        assert (float(torch.maximum((back.x - x).abs(), (back.p + p).abs()).max()) <= 1e-12) is holds


def test_s5_a_path_keeps_volumes():
    """S5: the determinant of the Jacobian of 20 steps is 1 to 1e-10."""

    def path(phase: Tensor) -> Tensor:
        x, p = phase[None, :2], phase[None, 2:]
        end = leapfrog(Quartic(), Phase(x, p, *Quartic().value_and_grad(x)), 0.1, 20)
        return torch.cat([end.x[0], end.p[0]])

    for x, p in zip(*phases(5), strict=True):
        jacobian = torch.autograd.functional.jacobian(path, torch.cat([x, p]))
        assert float((jacobian - torch.eye(4)).abs().max()) > 0.5
        assert abs(float(torch.linalg.det(jacobian)) - 1) <= 1e-10


def scalar_log_ratio(energy, x: list[float], p: list[float], h: float, n: int, temperature: float) -> float:
    """(H(x, p) - H(x', p')) / T in Python floats, coordinate by coordinate."""

    def energy_at(point):
        u, g = energy_and_grad(energy, torch.tensor([point], dtype=torch.float64))
        return u.item(), g[0].tolist()

    u, g = energy_at(x)
    before = u + math.fsum(a * a for a in p) / 2
    p = [a - h / 2 * b for a, b in zip(p, g, strict=True)]
    for k in range(n):
        x = [a + h * b for a, b in zip(x, p, strict=True)]
        u, g = energy_at(x)
        p = [a - (h if k < n - 1 else h / 2) * b for a, b in zip(p, g, strict=True)]
    return (before - u - math.fsum(a * a for a in p) / 2) / temperature


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", TARGETS)
def test_s6_log_acceptance_is_the_textbook_one(name, temperature):
    """S6: to 1e-10, with each chain's own step size."""
    energy, sampler = TARGETS[name].energy, replace(kernel(name), temperature=temperature)
    state = sampler.init(energy, exact_draws(name, 20))
    noise = sampler.draw(state, generator(7, name))
    got = hmc.log_acceptance_ratio(*sampler.propose(energy, state, noise), temperature)
    z, _, r = noise
    sizes = STEP[name] * (1 + sampler.jitter * (2 * r - 1))
    assert float(sizes.max() / sizes.min()) > 1.2
    want = [
        scalar_log_ratio(energy, a, b, h, sampler.num_leapfrog, temperature)
        for a, b, h in zip(state.x.tolist(), (temperature**0.5 * z).tolist(), sizes.tolist(), strict=True)
    ]
    assert float((got - torch.tensor(want, dtype=got.dtype)).abs().max()) <= 1e-10


@pytest.mark.parametrize("name", ["gaussian", "banana", "log-gamma"])
def test_s12_hmc_keeps_the_law(name):
    assert 0.4 < check_invariance(name, kernel(name)) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_s12_hmc_keeps_the_law_of_more_chains(name):
    assert 0.4 < check_invariance(name, kernel(name, num_leapfrog=5), num_chains=400_000) < 0.97


class NoMetropolis(HMC):
    def step(self, energy, state, noise):
        return super().step(energy, state, (noise[0], torch.zeros_like(noise[1]), noise[2]))


class SharedUniform(HMC):
    def draw(self, state, generator):
        z, v, r = super().draw(state, generator)
        return z, v[:1].expand_as(v), r


class StaleGradient(HMC):
    def step(self, energy, state, noise):
        moved, info = super().step(energy, state, noise)
        return moved._replace(g=state.g), info


class ColdMomenta(HMC):
    def draw(self, state, generator):
        z, v, r = super().draw(state, generator)
        return z / math.sqrt(2), v, r


class StepOfTheMomenta(HMC):
    """The step size depends on the number that the momenta are made of: the way back has another."""

    def draw(self, state, generator):
        z, v, _ = super().draw(state, generator)
        return z, v, (z[:, 0] > 0).to(z)


@pytest.mark.parametrize("mutant", [NoMetropolis, SharedUniform, StaleGradient, ColdMomenta, StepOfTheMomenta])
def test_s12_mutants_are_rejected(mutant):
    for name in ("log-gamma", "banana"):
        try:
            check_invariance(name, kernel(name, mutant), 20 if mutant is StaleGradient else 1)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__} survived")


def test_s16_the_mean_of_exp_of_the_error_is_one():
    """S16, Creutz (1988): E[exp(-dH)] = 1 at stationarity, d = 20, 200,000 draws; mutant: momenta that are too cold."""
    energy = DiagonalGaussian((0.0,) * 20, torch.linspace(0.5, 2, 20).diag())
    sampler = HMC(step_size=0.6, num_leapfrog=3)
    state = sampler.init(energy, energy.draw(200_000, generator(16, "x")))
    z, v, r = sampler.draw(state, generator(16, "noise"))
    for scale, sigmas in ((1.0, 5), (0.95, math.inf)):
        weight = hmc.log_acceptance_ratio(*sampler.propose(energy, state, (scale * z, v, r)), 1.0).exp()
        assert_near(weight.mean(), 1.0, weight.std() / len(weight) ** 0.5, sigmas)
    assert float(weight.std()) > 0.3
    assert abs(float(weight.mean()) - 1) > 10 * float(weight.std()) / len(weight) ** 0.5


@pytest.mark.parametrize("name", TARGETS)
def test_s18_a_batch_is_its_chains_one_by_one(name):
    check_one_by_one(kernel(name), TARGETS[name].energy.forward, exact_draws(name, 7))


def test_temperature_scales_the_law():
    energy, cold = TARGETS["gaussian"].energy, 0.25
    x = energy.mean + 0.5 * (exact_draws("gaussian", 20_000) - energy.mean)
    end = run_chain(HMC(step_size=0.12, num_leapfrog=3, temperature=cold), energy, x, num_steps=10)
    for v, expected in zip(end.var(0), energy.covariance.diagonal().tolist(), strict=True):
        assert_near(v, cold * expected, v * math.sqrt(2 / len(x)))


def test_a_path_of_a_period_does_not_stand_still():
    """On E = x² / 2 a leapfrog step turns by the angle 2 asin(h / 2): eight of a quarter of pi end at the start."""
    energy, h = DiagonalGaussian((0.0,), ((1.0,),)), 2 * math.sin(math.pi / 8)
    x = torch.full((1000, 1), 2.0, dtype=torch.float64)

    def moved(jitter: float) -> float:
        steps = transitions(HMC(step_size=h, num_leapfrog=8, jitter=jitter), energy, x, generator(0, "noise"))
        for _ in range(20):
            state, _ = next(steps)
        return float((state.x - x).abs().mean())

    assert moved(0.0) < 1e-10
    assert moved(0.2) > 1
