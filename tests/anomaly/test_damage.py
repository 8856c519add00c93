"""Damage keeps the look of the data and breaks what it forms; the objective learns the ratio it claims to learn."""

import pytest
import torch
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.density.feature_kde import FeatureKernelEnergy
from thalweg.energy.networks.autoencoder import AutoencoderEnergy
from thalweg.objective.base import Batch, Empty
from thalweg.objective.corruption import KINDS, Damage, warp
from thalweg.objective.restoration import RestorationContrast

X = torch.rand(32, 2, 9, 9, generator=generator(0, "x"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(12, 1, 28, 28), (5, 3, 8, 11), (1, 1, 8, 8)])
def test_each_kind_keeps_shape_and_range_and_draws_by_its_address(kind, shape):
    x = torch.rand(shape, generator=generator(0, "images"))
    before = x.clone()
    made, again = (Damage(kinds=[kind])(x, generator(3, "damage")) for _ in range(2))
    assert made.shape == x.shape
    assert torch.equal(made, again)
    assert torch.equal(x, before)
    assert bool(((made >= -1e-6) & (made <= 1 + 1e-6)).all())
    if len(x) > 1:
        assert not torch.equal(made, Damage(kinds=[kind])(x, generator(4, "damage")))


def test_kinds_are_dealt_in_turn_and_what_is_gone_is_ground():
    x = torch.zeros(8, 1, 28, 28)
    x[:, :, 8:20, 8:20] = 1
    ink = Damage(kinds=["cutout", "half_erase"])(x, generator(0, "d")).sum((1, 2, 3))
    assert bool((ink < x.sum((1, 2, 3))).all())
    light = Damage(kinds=["cutout"])(1 - x, generator(0, "d"))  # dark on a light ground: a hole is light
    assert bool((light >= 1 - x - 1e-6).all())
    assert bool((Damage(kinds=["overlay"])(x, generator(0, "d")) >= x).all())


def test_a_warp_of_nothing_is_nothing():
    torch.testing.assert_close(warp(X, generator(0, "w"), stretch=0, shift=0, bend=0), X)


@pytest.mark.parametrize(
    "wrong", [{"kinds": ["torn"]}, {"kinds": []}, {"bend": -1.0}, {"hole": (0.5, 0.2)}, {"hole": (0.0, 0.2)}]
)
def test_settings_of_damage_are_checked(wrong):
    with pytest.raises(UserError) as caught:
        Damage(**wrong)
    assert caught.value.argument == next(iter(wrong))


@pytest.mark.parametrize("wrong", [{"restore": -1.0}, {"views": -1.0}, {"temperature": 0.0}, {"stretch": -0.1}])
def test_settings_of_the_objective_are_checked(wrong):
    with pytest.raises(UserError) as caught:
        RestorationContrast(**wrong)
    assert caught.value.argument == next(iter(wrong))


class Line(nn.Module):
    """E(x) = a + b x of numbers."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x):
        return self.line(x).squeeze(1)


def test_the_minimum_is_the_log_likelihood_ratio():
    """Data N(0, 1), damage N(1, 1): E = log q/p = x - 1/2, within 5 deviations; the mutant with the classes exchanged
    is rejected.
    """
    n = 20_000
    x = torch.randn(n, 1, generator=generator(0, "nce"))
    objective = RestorationContrast(damage=lambda y, g: 1 + torch.randn(y.shape, generator=g))
    batch, energy = Batch(x), Line()
    noise = objective.draw(Empty(), batch, generator(0, "draw"), 0.0)
    optimizer = torch.optim.LBFGS(energy.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(energy, Empty(), batch, noise)[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = energy.line.weight.item(), energy.line.bias.item()
    sigma = 3 / n**0.5  # of either by the information of logistic regression at this overlap
    assert abs(slope - 1) < 5 * sigma
    assert abs(offset + 0.5) < 5 * sigma
    assert not abs(-slope - 1) < 5 * sigma


def test_an_energy_with_parts_is_trained_in_all_of_them():
    torch.manual_seed(0)
    energy = AutoencoderEnergy(shape=(2, 9, 9), widths=(16, 8), embed=4)
    objective = RestorationContrast()
    noise = objective.draw(Empty(), Batch(X), generator(0, "draw"), 0.0)
    loss, _, metrics = objective.loss(energy, Empty(), Batch(X), noise)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in energy.parameters())
    assert {"nce", "restoration", "views", "margin"} <= metrics.keys()
    parts = energy.parts(X)
    torch.testing.assert_close(parts.energy, energy(X))
    torch.testing.assert_close(parts.restored, energy.restore(X))


def test_the_kernel_energy_tells_near_from_far():
    """A row of the bank has the energy that its kernel alone allows; a row against all of them has more."""
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    energy = FeatureKernelEnergy(nn.Identity(), bank, torch.zeros(2), torch.eye(2), beta=10.0)
    u = energy(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
    want = -(torch.tensor([[1.0, 0.8], [-1.0, -0.8]]) * 10).exp().mean(1).log() / 10
    torch.testing.assert_close(u, want)
    torch.testing.assert_close(energy.leave_one_out(torch.tensor([[1.0, 0.0]])), torch.tensor([-0.8]))
    with pytest.raises(ValueError, match="beta="):
        FeatureKernelEnergy(nn.Identity(), bank, torch.zeros(2), torch.eye(2), beta=0.0)
    with pytest.raises(ValueError, match="2 rows or more"):
        FeatureKernelEnergy.of(nn.Identity(), bank[:1])
