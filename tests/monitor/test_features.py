"""The last hidden layer of an energy as features, and features of the user's."""

import pytest
import torch
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.transformer import TransformerEnergy
from thalweg.energy.noise_conditional.gaussian_prior import GaussianPriorEnergy
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.energy.wrappers import AtNoise
from thalweg.monitor import Diversity
from thalweg.monitor.features import last_hidden_layer


def rows(n, *shape):
    return torch.randn(n, *shape, generator=generator(0, "rows"))


def test_it_is_what_the_last_layer_takes():
    energy = MLPEnergy(shape=(2,), width=7, depth=2)
    x = rows(5, 2)
    assert torch.equal(last_hidden_layer(energy)(x), energy.net[:-1](x).detach())
    conv = ConvEnergy.example().eval()
    x = rows(5, *conv.shape)
    assert torch.allclose(last_hidden_layer(conv)(x), conv.features(x).detach())


def test_it_stays_as_it_was_while_training_goes_on():
    energy, x = MLPEnergy(shape=(2,), width=7, depth=2), rows(5, 2)
    features = last_hidden_layer(energy)
    before = features(x)
    with torch.no_grad():
        energy.net[0].weight.zero_()
    assert torch.equal(features(x), before)
    assert not torch.equal(last_hidden_layer(energy)(x), before)


def test_the_embedding_of_a_noise_level_is_no_feature():
    """Of U(y, t) the last layer to run may be one of t alone, the same for all rows."""
    for energy, width in ((ResidualEnergy.example(), 16), (UNetEnergy.example(), 8)):
        x = rows(6, *energy.shape)
        features = last_hidden_layer(energy)(x)
        assert features.shape == (6, width)
        assert bool((features.std(0) > 0).any())
        assert torch.equal(last_hidden_layer(AtNoise(energy, energy.t_min))(x), features)


def test_tokens_are_averaged():
    energy = TransformerEnergy.example()
    assert last_hidden_layer(energy)(rows(4, *energy.shape)).shape == (4, 8)


def test_none_is_found():
    with pytest.raises(UserError) as caught:
        last_hidden_layer(lambda x: x.sum(1))
    assert caught.value.argument == "energy"
    for energy in (nn.Flatten(), GaussianPriorEnergy.example()):
        with pytest.raises(UserError) as caught:
            last_hidden_layer(energy)(rows(4, 3))
        assert "features=" in str(caught.value)


def test_features_of_a_module_or_an_energy_decide_what_is_alike():
    """Samples that differ in what the features leave out alone are alike."""
    first = nn.Linear(2, 1, bias=False)
    nn.init.constant_(first.weight, 0.0)
    with torch.no_grad():
        first.weight[0, 0] = 1
    checked = Diversity(rows(200, 2), features=first)
    flat = rows(100, 2) * torch.tensor([0.01, 1.0])
    assert checked.figures(flat)["vendi"] < 0.6
    assert checked.figures(rows(100, 2))["vendi"] > 0.8
    assert (
        Diversity(rows(200, 2), features=last_hidden_layer(MLPEnergy(shape=(2,)))).figures(rows(50, 2))["vendi"] > 0.5
    )
