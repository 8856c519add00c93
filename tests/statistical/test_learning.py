"""S8, S21, S22, S23, S27: contrastive divergence learns what it should, on machines whose states are counted.

Every check rejects mutants by the same criterion that the code has to meet.
"""

import dataclasses
import types
from typing import Any

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.energy.lattice import Conditionals
from thalweg.objective import contrastive
from thalweg.objective.base import Batch
from thalweg.sampler.discrete import Gibbs

from .machines import gradients, log_law, machine, matrix, states
from .test_contrastive import mutant

NUM_CHAINS, BLOCKS = 400_000, 100
SIGN = ("real_mean - fake_mean + ", "fake_mean - real_mean + ")
SWAPPED = ("energy(torch.cat([real, fake]))", "energy(torch.cat([fake, real]))")
SHORT = ("in range(num)", "in range(num - 1)")
REUSED = ("tuple(kind[k]", "tuple(kind[0]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tempered:
    """Gibbs sampling of the joint law at inverse temperature beta."""

    sampler: Any
    beta: float = 1.0

    def init(self, energy, x):
        return self.sampler.init(energy, x)

    def draw(self, state, generator):
        return self.sampler.draw(state, generator)

    def step(self, energy, state, noise):
        hidden, visible = energy.conditionals
        warm = Conditionals(lambda v: self.beta * hidden(v), lambda h: self.beta * visible(h))
        return self.sampler.step(types.SimpleNamespace(conditionals=warm), state, noise)


def mean_gradient(objective, energy, blocks):
    """(mean, standard error), (P,), of the implementation's gradient over independent blocks of chains."""
    found = []
    for k, x in enumerate(blocks):
        state = objective.init(energy, x, generator(8, "init", k))
        loss, _, _ = objective.loss(
            energy, state, Batch(x), objective.draw(state, Batch(x), generator(8, "draw", k), 0.0)
        )
        energy.zero_grad()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in energy.parameters()]))
    g = torch.stack(found)
    return g.mean(0), g.std(0) / len(g) ** 0.5


# S8: the expectation of CD-k


def data(energy, n=NUM_CHAINS // BLOCKS):
    """n draws from another machine, and how often each state is among them."""
    number = torch.multinomial(log_law(machine(seed=5)).exp(), n, replacement=True, generator=generator(8, "data"))
    return states(energy)[number], torch.bincount(number, minlength=64) / n


def exact_gradients(energy, share, num_steps):
    """(expected CD-k gradient, likelihood's gradient) for data with this share of each state."""
    chain = share.double() @ torch.linalg.matrix_power(matrix(energy), num_steps)
    return (share - chain) @ gradients(energy), (share - log_law(energy).exp()) @ gradients(energy)


def cd_k(num_steps, module=contrastive, start="data"):
    """(max |z|, measured relative bias, its error bar, enumerated relative bias)."""
    energy = machine()
    x, share = data(energy)
    want, likelihood = exact_gradients(energy, share, num_steps)
    sampler = Gibbs(num_hidden=4)
    cd = module.ContrastiveDivergence(sampler=sampler, num_steps=num_steps, start=start, energy_penalty=0.0)
    g, bar = mean_gradient(cd, energy, [x] * BLOCKS)
    size = likelihood.norm()
    z = ((g - want) / bar).abs().max()
    return z, (g - likelihood).norm() / size, bar.norm() / size, (want - likelihood).norm() / size


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_s8_cd_k_has_its_enumerated_expectation(num_steps):
    """S8: the mean gradient of 4e5 chains, its bias against the likelihood's included, is that of T^k."""
    z, bias, bar, enumerated = cd_k(num_steps)
    assert z < 5
    assert (bias - enumerated).abs() < 5 * bar
    assert bar < 0.005


@pytest.mark.parametrize("change", [SIGN, SWAPPED, SHORT, REUSED], ids=["sign", "swapped", "k - 1", "noise reused"])
def test_s8_rejects_mutants(change):
    """S8, at k = 2: the sign, real and fake swapped, one step less, each step with the first step's noise."""
    z, bias, bar, enumerated = cd_k(2, mutant(contrastive, *change))
    assert z > 10
    assert (bias - enumerated).abs() > 10 * bar


def test_s8_rejects_chains_that_begin_at_noise():
    assert cd_k(2, start="noise")[0] > 10


# S27: from exact draws the negative phase has no bias


def stationary_z(module=contrastive, beta=1.0):
    """max |z| of the mean gradient at the model's own draws, which is zero."""
    energy = machine()
    sampler = Tempered(sampler=Gibbs(num_hidden=4), beta=beta)
    cd = module.ContrastiveDivergence(sampler=sampler, num_steps=3, start="data", energy_penalty=0.0)
    g, bar = mean_gradient(cd, energy, exact_draws(energy, NUM_CHAINS, 27).chunk(BLOCKS))
    return (g / bar).abs().max()


def test_s27_exact_draws_stay_exact():
    """S27: max |z| < 5 over 34 parameters; mutants: temperature 1.05, each step with the first step's noise.

    The rows of a finished chain may be permuted (a buffer's slots swapped) without a change of law: that mutant is
    equivalent here, and rejected by position in test_contrastive.py.
    """
    assert stationary_z() < 5
    assert stationary_z(beta=1 / 1.05) > 10
    assert stationary_z(mutant(contrastive, *REUSED)) > 10


# S21, S22: persistent chains reach maximum likelihood


def kl(truth, energy):
    """KL(truth || model) in nats, over all states."""
    p = log_law(truth)
    return float((p.exp() * (p - log_law(energy))).sum())


def exact_draws(truth, n, seed):
    """n independent positions."""
    number = torch.multinomial(log_law(truth).exp(), n, replacement=True, generator=generator(seed, "draws"))
    return states(truth)[number]


def new_machine(x, num_hidden, seed):
    """Small weights, visible biases at the data's log-odds (Hinton 2010)."""
    made = machine(tuple(x.shape[1:]), num_hidden, seed=seed, scale=0.01)
    p = x.flatten(1).mean(0).clamp(0.01, 0.99)
    with torch.no_grad():
        made.visible_bias.copy_(p.logit())
        made.hidden_bias.zero_()
    return made


def most_likely(x, num_hidden, seed):
    """The machine of largest likelihood, by its exact gradient."""
    energy = new_machine(x, num_hidden, seed)
    optimiser = torch.optim.LBFGS(
        energy.parameters(), max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )
    rows, count = x.unique(dim=0, return_counts=True)

    def loss():
        optimiser.zero_grad()
        value = (energy(rows) * count).sum() / len(x) + energy.log_z()
        value.backward()
        return value

    optimiser.step(loss)
    return energy


def learned(objective, x, *, num_hidden, num_steps, seed, rate, batch=500, look=lambda k, energy: None):
    """The machine after so many steps of descent, its parameters averaged over the last fifth."""
    energy = new_machine(x, num_hidden, seed)
    state = objective.init(energy, x[:batch], generator(seed, "init"))
    optimiser = torch.optim.SGD(energy.parameters(), lr=rate)
    mean, first = [torch.zeros_like(p) for p in energy.parameters()], num_steps - num_steps // 5
    for k in range(num_steps):
        address = generator(seed, "step", k)
        rows = Batch(x[torch.randint(len(x), (batch,), generator=address)])
        loss, state, _ = objective.loss(energy, state, rows, objective.draw(state, rows, address, k / num_steps))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        look(k, energy)
        if k >= first:
            for total, p in zip(mean, energy.parameters(), strict=True):
                total += p.detach() / (num_steps - first)
    with torch.no_grad():
        for p, m in zip(energy.parameters(), mean, strict=True):
            p.copy_(m)
    return energy
