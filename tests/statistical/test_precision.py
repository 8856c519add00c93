"""A network in bfloat16: Metropolis chains keep the law of the network in float32, and mutants do not.

The target is a Gaussian whose energy comes out of linear layers, so that autocast rounds it, with a constant of 1,000
nats, so that rounded energies come in steps of four. The law is known; chains begin in it, so that it must stay.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from thalweg.core.rng import generator
from thalweg.energy.base import Bipartite, energy_and_grad
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler.chain import transitions
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.precision import AtPrecision, at_precision, reads_energies

from .stats import assert_near

DIM, CHAINS, STEPS = 8, 20_000, 25


class Bowl(nn.Module):
    """E(x) = |s x|² / 2 + 1000 by two linear layers; x is normal with deviation 1 / s."""

    def __init__(self, scale: float = 2.0):
        super().__init__()
        self.scale = nn.Linear(DIM, DIM, bias=False)
        self.head = nn.Linear(DIM, 1)
        with torch.no_grad():
            self.scale.weight.copy_(scale * torch.eye(DIM))
            self.head.weight.fill_(0.5)
            self.head.bias.fill_(1000.0)

    def forward(self, x):
        return self.head(self.scale(x).square()).squeeze(1)


def end(sampler, energy, step_size, wrap=at_precision):
    """|s x|² of chains that began in the law, and the mean acceptance of all steps."""
    x, taken = torch.randn(CHAINS, DIM, generator=generator(3, "start")) / 2, []
    with wrap(energy, sampler, x, True) as precise:
        steps = transitions(sampler(step_size=step_size), precise, x, generator(3, "noise"))
        for _ in range(STEPS):
            state, info = next(steps)
            taken.append(info.acceptance.mean())
    assert state.x.dtype == torch.float32
    return (2 * state.x).square().sum(1), torch.stack(taken).mean()


def check_law(found) -> None:
    """chi² with 8 degrees of freedom: mean 8, variance 16; and the share below its median, 7.344."""
    assert_near(found.mean(), DIM, math.sqrt(2 * DIM / CHAINS))
    assert_near((found < 7.3441).double().mean(), 0.5, 0.5 / math.sqrt(CHAINS))


def rounded_energies(energy, sampler, x, bf16):
    """The mutant: Metropolis tests read the network's bfloat16 energies."""
    return at_precision(energy, ULA, x, bf16)


@dataclass(frozen=True, kw_only=True)
class RoundedState(MALA):
    """The mutant: positions in bfloat16."""

    def step(self, energy, state, noise):
        state, info = super().step(energy, state, noise)
        return state._replace(x=state.x.bfloat16().float()), info


def test_mala_in_bf16_keeps_the_law_of_fp32():
    found, acceptance = end(MALA, Bowl(), 0.05)
    check_law(found)
    assert 0.5 < float(acceptance) < 0.95, f"acceptance {float(acceptance):.2f}: a test that hardly rejects is blind"


def test_energies_in_bf16_are_rejected():
    found, _ = end(MALA, Bowl(), 0.05, rounded_energies)
    with pytest.raises(AssertionError):
        check_law(found)


def test_a_state_in_bf16_is_rejected():
    """Rounded positions lag behind small steps: near 1/2 bfloat16 has a spacing of 1/512, as large as these moves."""
    small = torch.full((CHAINS, DIM), 0.5)
    moved = {}
    for sampler in (MALA, RoundedState):
        steps = transitions(sampler(step_size=1e-7), Bowl(), small, generator(3, "noise"))
        for _ in range(STEPS):
            state, _ = next(steps)
        moved[sampler] = (state.x - small).var()
    want = 2e-7 * STEPS
    assert_near(moved[MALA], want, want * math.sqrt(2 / (CHAINS * DIM)), sigmas=8)
    assert float(moved[RoundedState]) < 0.5 * want


def test_ula_in_bf16_is_biased_by_rounding_only():
    """The variance that h leaves, with float32's; the same noise in both, so that the difference has a small error."""
    ends = []
    for bf16 in (False, True):
        x = torch.randn(CHAINS, DIM, generator=generator(3, "start")) / 2
        with at_precision(Bowl(), ULA, x, bf16) as precise:
            steps = transitions(ULA(step_size=0.05), precise, x, generator(3, "noise"))
            for _ in range(40):
                state, _ = next(steps)
        ends.append(state.x)
    want = 0.25 / (1 - 0.05 * 4 / 2)
    assert_near(ends[0].var(), want, want * math.sqrt(2 / ends[0].numel()))
    difference = (ends[1].square() - ends[0].square()).flatten()
    bias, error = float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))
    assert error < 5e-4 * want, "an error bar too wide to see anything"
    assert abs(bias) < 5e-3 * want
    assert not torch.equal(*ends)


def test_one_gradient_a_step_and_a_float32_energy_beside_it():
    energy, calls = Bowl(), []
    energy.head.register_forward_hook(lambda m, args, y: calls.append((y.dtype, args[0].requires_grad)))
    x = torch.randn(4, DIM, generator=generator(0, "x"))
    for sampler, want in (
        (MALA(step_size=0.1), [(torch.float32, False), (torch.bfloat16, True)] * 6),
        (ULA(step_size=0.1), [(torch.bfloat16, True)] * 5),
    ):
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16), at_precision(energy, sampler, x, True) as precise:
            steps = transitions(sampler, precise, x, generator(1, "noise"))
            for _ in range(5):
                next(steps)
        assert calls == want


def test_kernels_read_energies_unless_they_say_otherwise():
    assert reads_energies(object())
    assert reads_energies(MALA(step_size=0.1))
    assert not reads_energies(ULA(step_size=0.1))
    assert not isinstance(AtPrecision(Bowl(), bf16=False), Bipartite)


def test_training_under_autocast_has_exact_metropolis_tests():
    """The chain inside the objective sees the energies of float32, whatever the trainer's autocast."""
    seen = []

    class Spied(MALA):
        def step(self, energy, state, noise):
            seen.append((state.u, energy_and_grad(Bowl(), state.x)[0]))
            return super().step(energy, state, noise)

    objective = ContrastiveDivergence(sampler=Spied(step_size=0.05), num_steps=3, start="data")
    x, draws = torch.randn(16, DIM, generator=generator(0, "x")), generator(0, "draw")
    state = objective.init(None, x, draws)
    noise = objective.draw(state, Batch(x), draws, 0.0)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        objective.loss(Bowl(), state, Batch(x), noise)
    assert len(seen) == 3
    for got, _ in seen:
        assert got.dtype == torch.float32
        assert not torch.equal(got, got.bfloat16().float())
