"""S6, S9, S12, S15, S18: the Langevin samplers sample what they say, and mutants of them are caught."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.energy.base import energy_and_grad
from thalweg.sampler.base import Info
from thalweg.sampler.chain import run_chain, transitions
from thalweg.sampler.langevin import MALA, ULA, LangevinState

from .densities import LogGamma
from .invariance import TARGETS, DiagonalGaussian, check_invariance, check_one_by_one, exact_draws
from .stats import assert_near


@pytest.mark.parametrize("name", TARGETS)
def test_s12_mala_keeps_the_law(name):
    acceptance = check_invariance(name, MALA(step_size=TARGETS[name].step_size))
    assert 0.4 < acceptance < 0.9, f"acceptance {acceptance:.2f}: a test that hardly rejects is blind"


class NoMetropolis(MALA):
    def step(self, energy, state, noise):
        x = self.propose(state, noise[0])
        u, g = energy_and_grad(energy, x)
        return LangevinState(x, u, g, state.i + 1), Info(acceptance=torch.ones_like(u), grad_norm=u)


class NoProposalRatio(MALA):
    def log_ratio(self, state, z, u, g):
        return state.u - u


class SwappedRatio(MALA):
    def log_ratio(self, state, z, u, g):
        return -super().log_ratio(state, z, u, g)


class SharedUniform(MALA):
    def draw(self, state, generator):
        z, v = super().draw(state, generator)
        return z, v[:1].expand_as(v)


class StaleGradient(MALA):
    def step(self, energy, state, noise):
        moved, info = super().step(energy, state, noise)
        return moved._replace(g=state.g), info


class StaleEnergy(MALA):
    def step(self, energy, state, noise):
        moved, info = super().step(energy, state, noise)
        return moved._replace(u=state.u), info


class FlippedSign(MALA):
    def propose(self, state, z):
        return super().propose(state, z) + 2 * self.step_size * state.g


class RootHNoise(MALA):
    def propose(self, state, z):
        return super().propose(state, z / math.sqrt(2))


class ClampedToBox(MALA):
    def propose(self, state, z):
        return super().propose(state, z).clamp(-1.5, 1.5)


class Tempered105(MALA):
    def log_ratio(self, state, z, u, g):
        return super().log_ratio(state, z, u, g) - 0.05 * (state.u - u)


MUTANTS = (
    NoMetropolis, NoProposalRatio, SwappedRatio, SharedUniform, StaleGradient,
    StaleEnergy, FlippedSign, RootHNoise, ClampedToBox, Tempered105,
)  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_s12_mutants_are_rejected(mutant):
    """At least one target of the same suite raises on each."""
    for name, target in TARGETS.items():
        try:
            num_steps = 20 if mutant in (StaleGradient, StaleEnergy, Tempered105) else 1
            check_invariance(name, mutant(step_size=target.step_size), num_steps)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__} survived")


@dataclass(frozen=True, kw_only=True)
class Clipped(MALA):
    clip: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ClippedInOneDirection(Clipped):
    """Proposes with the clipped drift, and tests as if it were the whole one."""

    def log_ratio(self, state, z, u, g):
        return replace(self, clip=1e9).log_ratio(state, z, u, g) if self.clip < 1 else super().log_ratio(state, z, u, g)


@pytest.mark.parametrize("name", ["banana", "log-gamma"])  # where drifts are long enough to be clipped
def test_s12_a_clipped_drift_keeps_the_law(name):
    check_invariance(name, Clipped(step_size=TARGETS[name].step_size))


def test_s12_a_clip_unknown_to_the_test_is_rejected():
    with pytest.raises(AssertionError):
        check_invariance("banana", ClippedInOneDirection(step_size=TARGETS["banana"].step_size))


def scalar_log_acceptance(energy, x: list[float], y: list[float], h: float, temperature: float, clip: float) -> float:
    """log p(y) q(x | y) / (p(x) q(y | x)) in Python floats, from the proposal's density."""

    def at(point):
        u, g = energy_and_grad(energy, torch.tensor([point], dtype=torch.float64))
        return u.item(), g[0].tolist()

    def bound(drift):
        return min(max(drift, -clip), clip)

    (u_x, g_x), (u_y, g_y) = at(x), at(y)
    forward = math.fsum((b - a + bound(h * g)) ** 2 for a, b, g in zip(x, y, g_x, strict=True))
    backward = math.fsum((a - b + bound(h * g)) ** 2 for a, b, g in zip(x, y, g_y, strict=True))
    return (u_x - u_y) / temperature + (forward - backward) / (4 * h * temperature)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", TARGETS)
def test_s6_log_acceptance_is_the_textbook_one(name, temperature, clip):
    energy, _, h = TARGETS[name]
    mala = MALA(step_size=h, temperature=temperature, clip=clip)
    state = mala.init(energy, energy.draw(50, generator(6, name)))
    z, _ = mala.draw(state, generator(7, name))
    y = mala.propose(state, z)
    got = mala.log_ratio(state, z, *energy_and_grad(energy, y))
    want = [
        scalar_log_acceptance(energy, a, b, h, temperature, clip or math.inf)
        for a, b in zip(state.x.tolist(), y.tolist(), strict=True)
    ]
    assert float((got - torch.tensor(want, dtype=got.dtype)).abs().max()) <= 1e-10


STEPS = (0.5, 0.25, 0.125, 0.0625)


@dataclass(frozen=True, kw_only=True)
class RootHULA(ULA):
    def step(self, energy, state, noise):
        return super().step(energy, state, (noise[0] / math.sqrt(2),))


def check_ula_variance(sampler=ULA, from_own_law: bool = True) -> None:
    """Variance 1 / (lambda (1 - h lambda / 2)) at four step sizes, and a bias that falls as h.

    Chains start at that law and must keep it for some steps, or at the energy's own and must come to it.
    """
    energy, bias = DiagonalGaussian((0.5, 0.0), ((1.0, 0.0), (0.0, 0.5))), []
    for h in STEPS:
        want = [1 / (lam * (1 - h * lam / 2)) for lam in (1.0, 2.0)]
        x = energy.draw(400_000, generator(9, "start"))
        if from_own_law:
            x = energy.mean + (x - energy.mean) * (torch.tensor(want) / energy.covariance.diagonal()).sqrt()
        steps = transitions(sampler(step_size=h), energy, x, generator(9, "noise", int(1 / h)))
        for _ in range(3 if from_own_law else math.ceil(5 / h)):
            state, _ = next(steps)
        variance = state.x.var(0)
        for v, expected in zip(variance, want, strict=True):
            assert_near(v, expected, v * math.sqrt(2 / len(x)))
        assert_near(state.x[:, 0].mean(), 0.5, (variance[0] / len(x)).sqrt())
        bias.append(float(variance[0]) - 1)
    log_h, log_bias = torch.tensor(STEPS).log(), torch.tensor(bias).log()
    d = log_h - log_h.mean()
    assert abs(float((d * log_bias).sum() / d.square().sum()) - 1.12) < 0.15


def test_s9_s15_ula_samples_its_own_law():
    check_ula_variance()


@pytest.mark.slow
def test_s9_s15_ula_comes_to_its_own_law():
    check_ula_variance(from_own_law=False)


def test_s9_noise_of_sqrt_h_is_rejected():
    with pytest.raises(AssertionError):
        check_ula_variance(RootHULA)


def test_temperature_scales_the_law():
    energy = LogGamma((3.0,))
    x = energy.draw(20_000, generator(0, "start"))
    mean = run_chain(MALA(step_size=0.1, temperature=0.25), energy, x, num_steps=100).mean()
    # exp(-4 E) is log-gamma again: a = 12, and 4 exp(x) in place of exp(x).
    want = torch.digamma(torch.tensor(12.0, dtype=torch.float64))
    error = (torch.polygamma(1, torch.tensor(12.0)) / len(x)).sqrt()
    assert_near(mean, float(want) - math.log(4), error)


@pytest.mark.parametrize("sampler", [ULA(step_size=0.05), MALA(step_size=0.05)])
@pytest.mark.parametrize("name", TARGETS)
def test_s18_a_batch_is_its_chains_one_by_one(name, sampler):
    check_one_by_one(sampler, TARGETS[name].energy.forward, exact_draws(name, 7))


def test_a_clip_bounds_the_drift_and_nothing_else():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    z = torch.zeros_like(x)

    def step(**changes):
        sampler = ULA(step_size=0.5, **changes)
        return sampler.step(lambda y: 0.5 * y.square().sum(1), sampler.init(None, x), (z,))[0].x

    assert torch.equal(step(), 0.5 * x)
    assert torch.equal(step(clip=10.0), step())
    assert torch.equal(step(clip=0.4), x - (0.5 * x).clamp(-0.4, 0.4))
    with pytest.raises(ValueError, match="clip"):
        ULA(step_size=0.5, clip=0.0)
