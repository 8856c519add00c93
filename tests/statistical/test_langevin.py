"""S6, S9, S12, S15, S18: the Langevin samplers sample what they say, and mutants of them are caught."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.energy.base import energy_and_grad
from thalweg.sampler.base import Info
from thalweg.sampler.chain import run_chain, transitions
from thalweg.sampler.langevin import MALA, ULA, LangevinState

from .densities import Banana, LogGamma
from .stats import assert_law, assert_near, normal_cdf

NUM_CHAINS = 200_000
POWER = 0.0065


def chi_square_2(x: Tensor) -> Tensor:
    return -torch.expm1(-0.5 * x.square().sum(1, keepdim=True))


def gaussian_uniform(energy: Gaussian, x: Tensor) -> Tensor:
    z = torch.linalg.solve_triangular(energy.factor, (x - energy.mean).T, upper=False).T
    return torch.cat([normal_cdf(z), normal_cdf((z[:, :1] - z[:, 1:]) / math.sqrt(2)), chi_square_2(z)], 1)


def mixture_uniform(energy: GaussianMixture, x: Tensor) -> Tensor:
    angle = torch.tensor([0.0, 0.5 * math.pi, 0.3, 1.2], dtype=x.dtype)
    axes = torch.stack([angle.cos(), angle.sin()])
    z = ((x @ axes).unsqueeze(1) - energy.means @ axes) / energy.scale
    return (energy.weights[:, None] * normal_cdf(z)).sum(1)


def banana_uniform(energy: Banana, x: Tensor) -> Tensor:
    z = energy.untwist(x)
    return torch.cat([normal_cdf(z), normal_cdf((z[:, :1] + z[:, 1:]) / math.sqrt(2)), chi_square_2(z)], 1)


def log_gamma_uniform(energy: LogGamma, x: Tensor) -> Tensor:
    lower = torch.special.gammainc(energy.alpha.expand_as(x), x.exp())
    total = torch.special.gammainc(energy.alpha.sum().expand(len(x), 1), x.exp().sum(1, keepdim=True))
    return torch.cat([lower, total], 1)


ILL = ((0.7525, 0.4287), (0.4287, 0.2575))  # condition number 100 about, rotated by 30 degrees
TARGETS = {
    "gaussian": (Gaussian((1.0, -2.0), ILL), gaussian_uniform, 0.014),
    "mixture": (GaussianMixture(scale=0.6, weights=(1, 2, 3, 4, 1, 1, 2, 1)), mixture_uniform, 0.3),
    "banana": (Banana(), banana_uniform, 0.25),
    "log-gamma": (LogGamma(), log_gamma_uniform, 0.35),
}


def check_invariance(name: str, num_steps: int = 20, sampler=MALA, num_chains: int = NUM_CHAINS) -> float:
    """From exact draws, the law stays, after the first step too; chains move; each accepts on its own at the
    probability it states.

    Gives the mean acceptance of the last step.
    """
    energy, uniformise, step_size = TARGETS[name]
    draws = energy.draw(num_chains, generator(12, name))
    steps = transitions(sampler(step_size=step_size), energy, draws, generator(13, name))
    before = draws
    for k in range(num_steps):
        state, info = next(steps)
        if k == 0:
            assert_law(state.x, lambda x: uniformise(energy, x), power=POWER)
        moved, a = (state.x != before).any(1).double(), info.acceptance
        assert_near(moved.mean(), float(a.mean()), (a * (1 - a)).sum().sqrt().clamp(min=1) / num_chains)
        before = state.x
    jump = (state.x - draws).square().sum(1).mean() / energy.covariance.trace()
    assert float(jump) > 0.01, f"chains hardly moved: {float(jump):.4f} of the variance"
    assert_law(state.x, lambda x: uniformise(energy, x), power=POWER)
    return float(a.mean())


@pytest.mark.parametrize("name", TARGETS)
def test_s12_mala_keeps_the_law(name):
    acceptance = check_invariance(name)
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
    for name in TARGETS:
        try:
            check_invariance(name, 20 if mutant in (StaleGradient, StaleEnergy, Tempered105) else 1, mutant)
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


def test_s12_a_clipped_drift_keeps_the_law():
    for name in TARGETS:
        check_invariance(name, 20, Clipped)


def test_s12_a_clip_unknown_to_the_test_is_rejected():
    with pytest.raises(AssertionError):
        check_invariance("banana", 20, ClippedInOneDirection)


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


def check_ula_variance(sampler=ULA) -> None:
    """Variance 1 / (lambda (1 - h lambda / 2)) at four step sizes, and a bias that falls as h."""
    energy, bias = Gaussian((0.5, 0.0), ((1.0, 0.0), (0.0, 0.5))), []
    for h in STEPS:
        x = energy.draw(400_000, generator(9, "start"))
        steps = transitions(sampler(step_size=h), energy, x, generator(9, "noise", int(1 / h)))
        for _ in range(math.ceil(5 / h)):
            state, _ = next(steps)
        variance = state.x.var(0)
        for v, lam in zip(variance, (1.0, 2.0), strict=True):
            assert_near(v, 1 / (lam * (1 - h * lam / 2)), v * math.sqrt(2 / len(x)))
        assert_near(state.x[:, 0].mean(), 0.5, (variance[0] / len(x)).sqrt())
        bias.append(float(variance[0]) - 1)
    log_h, log_bias = torch.tensor(STEPS).log(), torch.tensor(bias).log()
    d = log_h - log_h.mean()
    assert abs(float((d * log_bias).sum() / d.square().sum()) - 1.12) < 0.15


def test_s9_s15_ula_samples_its_own_law():
    check_ula_variance()


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
    """Bit-identical on CPU, given each chain's own generator."""
    energy = TARGETS[name][0]
    x = energy.draw(7, generator(18, name))
    batch, info = sampler.init(energy, x), None
    singles = [sampler.init(energy, row[None]) for row in x]
    generators = [generator(18, "chain", rank=b) for b in range(len(x))]
    for _ in range(30):
        draws = [sampler.draw(s, g) for s, g in zip(singles, generators, strict=True)]
        singles = [sampler.step(energy, s, n)[0] for s, n in zip(singles, draws, strict=True)]
        noise = tuple(torch.cat(parts) for parts in zip(*draws, strict=True))
        batch, info = sampler.step(energy, batch, noise)
    assert isinstance(info, Info)
    assert torch.equal(batch.x, torch.cat([s.x for s in singles]))


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
