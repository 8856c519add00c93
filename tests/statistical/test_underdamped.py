"""S12, S15, S16, S18: underdamped Langevin dynamics, with the Metropolis test and without, and mutants."""

import math

import pytest
import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.sampler.chain import transitions
from thalweg.sampler.hmc import Phase, leapfrog, log_acceptance_ratio
from thalweg.sampler.underdamped import UnderdampedLangevin

from .invariance import TARGETS, DiagonalGaussian, check_invariance, check_one_by_one, exact_draws
from .stats import assert_near, normal_cdf

STEP = {"gaussian": 0.13, "mixture": 1.0, "banana": 0.8, "log-gamma": 1.1}


def kernel(name: str, cls: type[UnderdampedLangevin] = UnderdampedLangevin) -> UnderdampedLangevin:
    return cls(step_size=STEP[name], friction=0.5 / STEP[name])


def momenta(state) -> Tensor:
    """Uniform where momenta are standard normal, and independent of where the gradient points."""
    side = torch.where(state.g[:, :1] > 0, 1.0, -1.0)
    return normal_cdf(torch.cat([state.p, side * state.p[:, :1]], 1))


@pytest.mark.parametrize("name", ["gaussian", "banana", "log-gamma"])
def test_s12_it_keeps_the_law_of_positions_and_momenta(name):
    assert 0.5 < check_invariance(name, kernel(name), also=momenta) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_s12_it_keeps_the_law_of_more_chains(name):
    assert 0.5 < check_invariance(name, kernel(name), num_chains=400_000, also=momenta) < 0.97


class NoMetropolis(UnderdampedLangevin):
    def step(self, energy, state, noise):
        return super().step(energy, state, (noise[0], torch.zeros_like(noise[1])))


class NoFlip(UnderdampedLangevin):
    def step(self, energy, state, noise):
        moved, info = super().step(energy, state, noise)
        rejected = (moved.x == state.x).all(1, keepdim=True)
        return moved._replace(p=torch.where(rejected, -moved.p, moved.p)), info


class SharedUniform(UnderdampedLangevin):
    def draw(self, state, generator):
        z, v = super().draw(state, generator)
        return z, v[:1].expand_as(v)


class TooMuchNoise(UnderdampedLangevin):
    def refreshed(self, state, z):
        return super().refreshed(state, 1.1 * z)


class StaleGradient(UnderdampedLangevin):
    def step(self, energy, state, noise):
        moved, info = super().step(energy, state, noise)
        return moved._replace(g=state.g), info


@pytest.mark.parametrize("mutant", [NoMetropolis, NoFlip, SharedUniform, TooMuchNoise, StaleGradient])
def test_s12_mutants_are_rejected(mutant):
    for name in ("log-gamma", "banana"):
        try:
            check_invariance(name, kernel(name, mutant), 8 if mutant in (StaleGradient, NoFlip) else 1, also=momenta)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__} survived")


def test_s16_the_mean_of_exp_of_the_error_is_one():
    """S16: E[exp(-dH)] = 1 in each step of a stationary chain, d = 20, 200,000 draws; mutant: momenta too cold."""
    energy = DiagonalGaussian((0.0,) * 20, torch.linspace(0.5, 2, 20).diag())
    sampler = UnderdampedLangevin(step_size=0.7, friction=1.0)
    state = sampler.init(energy, energy.draw(200_000, generator(16, "x")))
    for k in range(3):
        z, v = sampler.draw(state, generator(16, "noise", k))
        p = sampler.refreshed(state, z)
        for scale, holds in ((1.0, True), (0.95, False)) if k == 2 else ((1.0, True),):
            start = Phase(state.x, scale * p, state.u, state.g)
            weight = log_acceptance_ratio(start, leapfrog(energy, start, 0.7, 1), 1.0).exp()
            z_score = float((weight.mean() - 1) / weight.std()) * len(weight) ** 0.5
            assert abs(z_score) < 5 if holds else abs(z_score) > 10
            assert float(weight.std()) > 0.2
        state, _ = sampler.step(energy, state, (z, v))


@pytest.mark.parametrize("name", TARGETS)
def test_s18_a_batch_is_its_chains_one_by_one(name):
    check_one_by_one(kernel(name), TARGETS[name].energy.forward, exact_draws(name, 7))


def check_own_law(sampler: UnderdampedLangevin, steps: int = 3) -> None:
    """S15: without the test the variances T / (lambda (1 - lambda h² / 4)) of x and T of p are kept."""
    h, t, lam = sampler.step_size, sampler.temperature, torch.tensor([1.0, 4.0], dtype=torch.float64)
    energy, n = DiagonalGaussian((0.0, 0.0), (1 / lam).diag()), 200_000
    want = t / (lam * (1 - lam * h**2 / 4))
    x = torch.randn(n, 2, generator=generator(15, "x"), dtype=torch.float64) * want.sqrt()
    chain = transitions(sampler, energy, x, generator(15, "noise"))
    for _ in range(steps):
        state, info = next(chain)
    assert bool((info.acceptance == 1).all())
    for j in range(2):
        assert_near(state.x[:, j].var(), float(want[j]), state.x[:, j].var() * math.sqrt(2 / n))
        assert_near(state.p[:, j].var(), t, t * math.sqrt(2 / n))
        assert_near((state.x * state.p)[:, j].mean(), 0.0, (state.x * state.p)[:, j].std() / math.sqrt(n))


def test_s15_without_the_test_it_samples_its_own_law():
    check_own_law(UnderdampedLangevin(step_size=0.6, friction=0.7, temperature=1.5, adjusted=False))


def test_s15_noise_that_is_too_large_is_rejected():
    with pytest.raises(AssertionError):
        check_own_law(TooMuchNoise(step_size=0.6, friction=0.7, temperature=1.5, adjusted=False))


def test_momenta_last():
    """After k steps without force momenta are correlated by exp(-gamma h k)."""
    sampler = UnderdampedLangevin(step_size=0.5, friction=0.4)
    x = torch.zeros(100_000, 1, dtype=torch.float64)
    chain = transitions(sampler, lambda y: 0.0 * y.sum(1), x, generator(1, "noise"))
    p = [next(chain)[0].p for _ in range(4)]
    assert_near((p[0] * p[3]).mean(), math.exp(-0.6), (p[0] * p[3]).std() / len(x) ** 0.5)
    assert_near(p[3].var(), 1.0, math.sqrt(2 / len(x)))
