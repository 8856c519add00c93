"""S7: block Gibbs sampling against its full transition matrix; the machine's normaliser against enumeration."""

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian
from thalweg.energy.enumeration import all_states
from thalweg.energy.rbm import RBMEnergy
from thalweg.energy.wrappers import Tempered
from thalweg.sampler.chain import run_chain
from thalweg.sampler.gibbs import Gibbs
from thalweg.sampler.langevin import Position

from .machines import log_law, machine, matrix, states

NUM_CHAINS = 400_000


@pytest.mark.parametrize(("shape", "num_hidden"), [((6,), 4), ((8,), 3), ((2, 3), 7)])
def test_s7_the_transition_matrix_is_reversible(shape, num_hidden):
    """S7: rows sum to 1, pi T = pi and detailed balance, to 1e-12; a wrong sign of a bias is rejected."""
    energy = machine(shape, num_hidden)
    t, pi = matrix(energy), log_law(energy).exp()
    flow = pi[:, None] * t
    assert (t.sum(1) - 1).abs().max() < 1e-12
    assert (pi @ t - pi).abs().max() < 1e-12
    assert (flow - flow.T).abs().max() < 1e-12
    energy.hidden_bias.data.neg_()
    assert (pi @ matrix(energy) - pi).abs().max() > 1e-3


def step_z(change=lambda noise: noise):
    """max |z| over 64 x 64 transitions: a step from every state, against the matrix."""
    energy = machine()
    t, n = matrix(energy), NUM_CHAINS // 64
    sampler, state = Gibbs(num_hidden=4), Position(states(energy).repeat(n, 1))
    noise = change(sampler.draw(state, generator(7, "noise")))
    moved, _ = sampler.step(energy, state, noise)
    number = (moved.x @ (2.0 ** torch.arange(5, -1, -1, dtype=torch.float64))).long()
    start = torch.arange(64).repeat(n)
    count = torch.zeros(64 * 64, dtype=torch.float64).index_add(
        0, 64 * start + number, torch.ones(len(number)).double()
    )
    want = n * t.flatten()
    often = want > 25  # where the count is near enough to normal
    assert often.sum() > 300
    return ((count - want) / (want * (1 - t.flatten())).sqrt())[often].abs().max()


def test_s7_a_step_follows_the_matrix():
    """S7: frequencies within 5 sigma; mutants: a number shared by all units of a layer, layers sharing numbers."""
    assert step_z() < 5
    assert step_z(lambda noise: (noise[0][:, :1].expand_as(noise[0]), noise[1])) > 10
    assert step_z(lambda noise: (noise[1][:, :4], noise[1])) > 10


@pytest.mark.parametrize(("shape", "num_hidden"), [((6,), 4), ((4,), 9), ((2, 3), 6)])
def test_the_normaliser_is_the_sum_over_states(shape, num_hidden):
    energy = machine(shape, num_hidden)
    v = states(energy)
    assert torch.allclose(energy.log_z(), torch.logsumexp(-energy(v), 0), rtol=1e-14)
    h = all_states(num_hidden)
    joint = v.flatten(1) @ energy.visible_bias + h[:, None] @ energy.hidden_bias + h @ energy.weight @ v.flatten(1).T
    assert torch.allclose(-energy(v), joint.logsumexp(0), rtol=1e-14)


def test_run_chain_takes_it_and_goes_on_where_it_stopped():
    energy, x = machine((2, 3)).float(), torch.rand(50, 2, 3)
    whole = run_chain(Gibbs(num_hidden=4), energy, x, num_steps=9, seed=5)
    half = run_chain(Gibbs(num_hidden=4), energy, x, num_steps=4, seed=5)
    assert torch.equal(run_chain(Gibbs(num_hidden=4), energy, half, num_steps=5, seed=5, start=4), whole)
    assert ((whole == 0) | (whole == 1)).all()
    assert whole.dtype == torch.float32
    bf16 = run_chain(Gibbs(num_hidden=4), energy, x, num_steps=9, seed=5, precision="bf16")
    assert torch.equal(bf16, whole)


def test_numbers_beyond_the_hidden_units_are_not_used():
    energy, x = machine((2, 3)), torch.rand(50, 2, 3).double()
    sampler, state = Gibbs(num_hidden=7), Position(x)
    r, s = sampler.draw(state, generator(3, "noise"))
    want, _ = Gibbs(num_hidden=4).step(energy, state, (r[:, :4], s))
    assert torch.equal(sampler.step(energy, state, (r, s))[0].x, want.x)


def test_a_broken_energy_shows():
    energy = machine()
    energy.visible_bias.data[2] = torch.nan
    end = run_chain(Gibbs(num_hidden=4), energy, torch.ones(4, 6).double(), num_steps=1)
    assert end[:, 2].isnan().all()


@pytest.mark.parametrize(
    ("energy", "num_hidden", "argument"),
    [
        (Gaussian((0.0,) * 6), 4, "energy"),
        (Tempered(machine(), 0.5), 4, "energy"),
        (machine(), 3, "num_hidden"),
    ],
)
def test_an_energy_without_the_structure_is_refused(energy, num_hidden, argument):
    with pytest.raises(UserError) as caught:
        run_chain(Gibbs(num_hidden=num_hidden), energy, torch.zeros(3, 6).double(), num_steps=1)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RBMEnergy(shape=(0,)), r"shape=\(0,\)"),
        (lambda: RBMEnergy(num_hidden=0), "num_hidden=0"),
        (lambda: RBMEnergy(weight_std=-1.0), r"weight_std=-1\.0"),
        (lambda: RBMEnergy(shape=(21,), num_hidden=21).log_z(), "must be at most 20"),
        (lambda: all_states(30), "must be at most 20"),
        (lambda: Gibbs(num_hidden=0), "num_hidden=0"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(UserError, match=message):
        make()
