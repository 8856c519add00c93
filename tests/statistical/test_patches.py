"""A convolution by patches is a convolution: values, first and second derivatives, with and without spectral norm."""

import pytest
import torch
from torch import nn

from thalweg.energy.engine.freeze import normalise
from thalweg.energy.engine.im2col import PatchConv2d


def outcome(conv, x):
    """The layer's output, the gradients of a bent sum, and those of the input gradient's square."""
    x = x.clone().requires_grad_()
    y = conv(x)
    (g,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    return y, g, *torch.autograd.grad(g.square().sum() + y.square().sum(), [x, *conv.parameters()])


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize(
    ("c_in", "size", "stride", "padding"), [(1, 4, 2, 1), (3, 4, 2, 1), (2, 3, 1, 0), (2, 5, 3, 2)]
)
def test_it_is_the_convolution_of_its_parameters(c_in, size, stride, padding, spectral):
    torch.manual_seed(0)
    ours = PatchConv2d(c_in, 6, size, stride=stride, padding=padding).double()
    plain = nn.Conv2d(c_in, 6, size, stride=stride, padding=padding).double()
    plain.load_state_dict(ours.state_dict())
    torch.manual_seed(1)
    ours = normalise(ours, spectral).eval()
    torch.manual_seed(1)
    plain = normalise(plain, spectral).eval()
    x = torch.randn(3, c_in, 11, 10, dtype=torch.float64)
    for mine, theirs in zip(outcome(ours, x), outcome(plain, x), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)
    turned = outcome(ours, x.transpose(2, 3))[0].transpose(2, 3)  # a mutant that swaps rows and columns of a patch
    assert not torch.allclose(turned, outcome(plain, x)[0])
