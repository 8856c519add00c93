"""S12, S18, S19: replica exchange keeps the laws of all replicas, exchanges as it should, and crosses barriers."""

import math

import pytest
import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.energy.base import energy_and_grad
from thalweg.sampler.chain import transitions
from thalweg.sampler.gibbs_with_gradients import GibbsWithGradients
from thalweg.sampler.hmc import HMC
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.replica_exchange import ReplicaExchange

from .densities import LogGamma
from .invariance import NUM_CHAINS, POWER, TARGETS, DiagonalGaussian, _LogGamma, _Mixture, check_one_by_one
from .machines import log_law, machine, states
from .stats import ALPHA, assert_law, assert_near

TEMPERATURES = (1.0, 2.0, 5.0)


def tempered_draws(energy: LogGamma, n: int) -> Tensor:
    """(n, K, 1) draws of exp(-E / T): exp(x) / T is Gamma(a / T)."""
    parts = [
        LogGamma(energy.alpha / t).draw(n, generator(19, "start", k)) + math.log(t) for k, t in enumerate(TEMPERATURES)
    ]
    return torch.stack(parts, 1)


def uniformised(energy: LogGamma, x: Tensor) -> Tensor:
    """(n, K, 1) to uniform numbers of each replica, and of pairs, which are uniform where replicas are independent."""
    t = torch.tensor(TEMPERATURES, dtype=x.dtype)
    v = torch.special.gammainc((energy.alpha / t).expand(len(x), -1), x.squeeze(2).exp() / t)
    return torch.cat([v, (v[:, :1] + v[:, 1:]) % 1], 1)


def check_laws(sampler: ReplicaExchange, num_steps: int = 20, num_chains: int = NUM_CHAINS) -> None:
    """S12: from exact draws of every replica the laws stay, after 1, 2 and all steps; chains move."""
    energy = _LogGamma((0.7,))
    start = tempered_draws(energy, num_chains)
    state = sampler.init_replicas(energy, start)
    for k in range(num_steps):
        state, _ = sampler.step(energy, state, sampler.draw(state, generator(13, "noise", k)))
        if k in (0, 1, num_steps - 1):
            x = sampler.positions(energy, state)
            assert torch.equal(x[:, 0], state.x)
            assert_law(uniformised(energy, x), lambda v: v, power=POWER)
    u, g = energy_and_grad(energy, x.flatten(0, 1))
    t = torch.tensor(TEMPERATURES, dtype=torch.float64)
    assert torch.allclose(state.replicas.u.unflatten(0, (-1, 3)) * t, u.unflatten(0, (-1, 3)), rtol=1e-12)
    assert torch.allclose(state.replicas.g.unflatten(0, (-1, 3)).squeeze(2) * t.sqrt(), g.unflatten(0, (-1, 3))[..., 0])
    assert float((x - start).square().mean()) > 1


def kernel(cls: type[ReplicaExchange] = ReplicaExchange) -> ReplicaExchange:
    return cls(sampler=MALA(step_size=0.5), temperatures=TEMPERATURES)


def test_s12_it_keeps_the_law_of_each_replica():
    check_laws(kernel())


@pytest.mark.slow
@pytest.mark.parametrize("inner", [MALA(step_size=0.5), HMC(step_size=0.8, num_leapfrog=2)])
def test_s12_it_keeps_the_law_of_more_chains(inner):
    check_laws(ReplicaExchange(sampler=inner, temperatures=TEMPERATURES), 60, 400_000)


class AlwaysSwaps(ReplicaExchange):
    def _swap_acceptance(self, replicas):
        return torch.ones_like(super()._swap_acceptance(replicas))


class SwappedRatio(ReplicaExchange):
    def _swap_acceptance(self, replicas):
        return super()._swap_acceptance(replicas._replace(u=-replicas.u))


class WithoutUnits(ReplicaExchange):
    """Decides by E / T in place of E."""

    def _swap_acceptance(self, replicas):
        t = replicas.u.new_tensor(self.temperatures)
        return super()._swap_acceptance(replicas._replace(u=(self._by_chain(replicas.u) / t).flatten()))


class StaleGradient(ReplicaExchange):
    def _exchanged(self, tempered, replicas, swap):
        return super()._exchanged(tempered, replicas, swap)._replace(g=replicas.g)


class SharedUniform(ReplicaExchange):
    def draw(self, state, generator):
        *noise, v = super().draw(state, generator)
        return *noise, v[:1].expand_as(v)


@pytest.mark.parametrize("mutant", [AlwaysSwaps, SwappedRatio, WithoutUnits, StaleGradient, SharedUniform])
def test_s12_mutants_are_rejected(mutant):
    with pytest.raises(AssertionError):
        check_laws(kernel(mutant), 6 if mutant is StaleGradient else 2)


def test_s19_swaps_are_accepted_with_the_exact_probability():
    """S19: by the formula in Python floats; on the mean, of Gaussians in the plane, 2 T_1 / (T_1 + T_2)."""
    energy, n = DiagonalGaussian((0.0, 0.0)), 100_000
    sampler = ReplicaExchange(sampler=MALA(step_size=0.1), temperatures=TEMPERATURES)
    t = torch.tensor(TEMPERATURES, dtype=torch.float64)
    x = t.sqrt()[:, None] * torch.randn(n, 3, 2, generator=generator(19, "x"), dtype=torch.float64)
    got = sampler.swap_acceptance(sampler.init_replicas(energy, x))
    for b in range(50):
        for k in range(2):
            (low, high), (cold, hot) = TEMPERATURES[k : k + 2], [0.5 * float(y.square().sum()) for y in x[b, k : k + 2]]
            assert abs(float(got[b, k]) - min(1, math.exp((1 / low - 1 / high) * (cold - hot)))) <= 1e-10
    for k in range(2):
        exact = 2 * TEMPERATURES[k] / (TEMPERATURES[k] + TEMPERATURES[k + 1])
        assert_near(got[:, k].mean(), exact, got[:, k].std() / math.sqrt(n))


def test_even_and_odd_pairs_take_turns():
    """On a flat energy every pair of its turn is exchanged, and replicas go round."""
    sampler = ReplicaExchange(sampler=MALA(step_size=1e-12), temperatures=(1.0, 2.0, 3.0, 4.0))
    x = torch.arange(4.0, dtype=torch.float64).reshape(1, 4, 1)
    state, seen = sampler.init_replicas(lambda y: 0.0 * y.sum(1), x), []
    for k in range(3):
        noise = sampler.draw(state, generator(0, "noise", k))
        state, _ = sampler.step(lambda y: 0.0 * y.sum(1), state, noise)
        seen.append(sampler.positions(lambda y: y, state).flatten().round().tolist())
    assert seen == [[1, 0, 3, 2], [1, 3, 0, 2], [3, 1, 2, 0]]


MIXTURE = _Mixture(scale=0.3, weights=(1, 2, 3, 4, 1, 1, 2, 1))


def check_weights(sampler, num_chains: int, num_steps: int, every: int) -> None:
    """Chi-square at alpha = 1e-6 over draws `every` so many steps, and each weight within 0.01; all begin in mode 0.

    A draw's mode is drawn from p(mode | x), so that modes of exact draws have the mixture's weights exactly.
    """
    x, modes, labels = MIXTURE.means[:1].expand(num_chains, 2).float(), [], generator(19, "labels")
    steps = transitions(sampler, MIXTURE, x, generator(19, "mixture"))
    for k in range(1, num_steps + 1):
        state, _ = next(steps)
        if k % every == 0:
            modes.append(torch.multinomial(MIXTURE.logits(state.x).softmax(1), 1, generator=labels))
    counts, exact = torch.bincount(torch.cat(modes).flatten(), minlength=8).double(), MIXTURE.weights
    n = counts.sum()
    chi_square = ((counts - n * exact).square() / (n * exact)).sum()
    assert float(torch.special.gammaincc(torch.tensor(3.5).double(), 0.5 * chi_square)) > ALPHA
    assert float((counts / n - exact).abs().max()) < 0.01


COLD, LADDER = MALA(step_size=0.05), (1.0, 3.0, 9.0, 27.0)


def test_s19_the_weights_of_eight_modes():
    """S19: 20,000 chains of 80 steps, 1.6e6 in all, of which the last counts; MALA alone stays where it began."""
    check_weights(ReplicaExchange(sampler=COLD, temperatures=LADDER), 20_000, 80, 80)
    with pytest.raises(AssertionError):
        check_weights(COLD, 2000, 80, 80)


@pytest.mark.slow
def test_s19_the_weights_of_eight_modes_after_100_000_steps():
    """S19: 64 chains of 1e5 steps, of which each 400th counts."""
    check_weights(ReplicaExchange(sampler=COLD, temperatures=LADDER), 64, 100_000, 400)


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_s18_a_batch_is_its_chains_one_by_one(name):
    energy = TARGETS[name].energy
    check_one_by_one(kernel(), energy.forward, energy.draw(5, generator(18, name)))


def test_states_of_a_discrete_energy_are_exchanged_as_they_are():
    """Gibbs with gradients at three temperatures: each replica keeps its law over the 16 states."""
    energy, n = machine((4,), 3).requires_grad_(False), 50_000
    sampler = ReplicaExchange(sampler=GibbsWithGradients(), temperatures=TEMPERATURES)
    laws = [torch.softmax(log_law(energy) / t, 0) for t in TEMPERATURES]
    start = [torch.multinomial(p, n, replacement=True, generator=generator(4, "start", k)) for k, p in enumerate(laws)]
    state = sampler.init_replicas(energy, torch.stack([states(energy)[s] for s in start], 1))
    for k in range(5):
        state, _ = sampler.step(energy, state, sampler.draw(state, generator(4, "noise", k)))
    x = sampler.positions(energy, state)
    assert bool(((x == 0) | (x == 1)).all())
    number = (x.long() * 2 ** torch.arange(3, -1, -1)).sum(2)
    for k, p in enumerate(laws):
        chi_square = ((torch.bincount(number[:, k], minlength=16) - n * p).square() / (n * p)).sum()
        assert float(torch.special.gammaincc(torch.tensor(7.5).double(), 0.5 * chi_square)) > ALPHA


def test_what_it_refuses():
    with pytest.raises(UserError) as caught:
        ReplicaExchange(sampler=ULA(step_size=0.1)).init(Gaussian.example(), torch.zeros(3, 2))
    assert caught.value.argument == "sampler"


def test_the_mixture_is_the_one_of_the_package():
    u, g = energy_and_grad(GaussianMixture(scale=0.3, weights=MIXTURE.weights), x := torch.randn(9, 2).double())
    assert torch.allclose(MIXTURE.value_and_grad(x)[0], u)
    assert torch.allclose(MIXTURE.value_and_grad(x)[1], g)
