"""`precision="auto"`: a chain in the precision that was faster, measured once for a network and its positions."""

import copy

import pytest
import torch
from torch import nn

from thalweg.energy.rbm import RBMEnergy
from thalweg.sampler import precision
from thalweg.sampler.chain import run_chain
from thalweg.sampler.gibbs import Gibbs
from thalweg.sampler.langevin import MALA, ULA


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 1), nn.Flatten(0)]
    return nn.Sequential(*layers)


def chain(net, x, name, sampler=None):
    return run_chain(sampler or ULA(step_size=1e-2), net, x, num_steps=3, precision=name)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sampler", [ULA(step_size=1e-2), MALA(step_size=1e-2)], ids=["ula", "mala"])
def test_the_chain_is_that_of_the_precision_that_was_faster(net, bf16, sampler, monkeypatch):
    asked = []
    monkeypatch.setattr(precision, "_saves", lambda *args: asked.append(args[2].shape) or bf16)
    x = torch.rand(3, 1, 8, 8)
    want, other = (chain(net, x, name, sampler) for name in (("bf16", "fp32") if bf16 else ("fp32", "bf16")))
    assert torch.equal(chain(net, x, "auto", sampler), want)
    assert not torch.equal(want, other)
    assert torch.equal(chain(net, x + 1, "auto", sampler), chain(net, x + 1, "bf16" if bf16 else "fp32", sampler))
    assert asked == [x.shape], "the second chain keeps the answer of the first"
    chain(net, x[:2], "auto", sampler)
    chain(copy.deepcopy(net), x, "auto", sampler)
    assert asked == [x.shape, x[:2].shape, x.shape], "another number of chains, and another network, are measured"


def test_what_is_measured_leaves_the_chain_alone(net):
    """Two steps at the least were made before the first; the draws, the network and the positions are as ever."""
    x, state = torch.rand(3, 1, 8, 8), torch.random.get_rng_state()
    before, kept = copy.deepcopy(net.state_dict()), x.clone()
    found = chain(net, x, "auto")
    assert any(torch.equal(found, chain(net, x, name)) for name in ("fp32", "bf16"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(x, kept)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


def test_nothing_is_measured_where_bf16_changes_nothing(net, monkeypatch):
    monkeypatch.setattr(precision, "_saves", lambda *args: pytest.fail("measured"))
    x = torch.rand(3, 1, 8, 8)
    chain(net.double(), x.double(), "auto")
    chain(lambda y: y.flatten(1).square().sum(1), x, "auto")
    assert torch.equal(run_chain(ULA(step_size=1e-2), net.float(), x, num_steps=0, precision="auto"), x)


def test_a_sampler_without_gradients_is_measured_too():
    torch.manual_seed(0)
    energy, sampler = RBMEnergy.example(), Gibbs.example()
    x = torch.zeros(3, *energy.shape)
    assert torch.equal(chain(energy, x, "auto", sampler), chain(energy, x, "fp32", sampler))
