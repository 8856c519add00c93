"""Which modules take each number for itself is told from their source alone, and never wrongly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import functional

from thalweg.energy.engine.known_layers import SILU, layer_of
from thalweg.energy.engine.layers import ByAutograd
from thalweg.energy.engine.pointwise import is_pointwise, is_silu

SIGMOID = torch.sigmoid


class Swish(nn.Module):
    """As the tutorials have it."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class SwishByMethod(nn.Module):
    def forward(self, input):
        """A docstring."""
        return input.sigmoid() * input


class Scaled(nn.Module):
    def __init__(self, beta: float | torch.Tensor = 1.5):
        super().__init__()
        self.beta = beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -(x**2) / (1 + functional.softplus(x, beta=self.beta)) + F.leaky_relu(x, 0.2).tanh() - SIGMOID(x)


class OfOthers(nn.Module):
    def forward(self, x):
        return x - x.mean()


class Reshaping(nn.Module):
    def forward(self, x):
        return torch.square(x).flatten(1)


class Noting(nn.Module):
    """Does something beside."""

    seen = 0

    def forward(self, x):
        Noting.seen += 1
        return x * 2


class Constant(nn.Module):
    def forward(self, x):
        return 1.0


class Shadowing(nn.Module):
    def forward(self, torch):
        return torch.sigmoid(torch)


class Another(nn.Module):
    """A free name that is no function of torch."""

    def forward(self, x):
        return layer_of(x)


class Two(nn.Module):
    def forward(self, x, y=1):
        return x * y


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return x * 2


TAKEN = [Swish(), SwishByMethod(), Scaled(), nn.ELU(0.7), nn.Mish(), nn.Hardswish(), nn.Softsign(), nn.Tanhshrink()]


@pytest.mark.parametrize("module", TAKEN, ids=lambda m: type(m).__name__)
def test_a_pointwise_module_is_a_layer(module):
    layer = layer_of(module)
    assert isinstance(layer, ByAutograd) or layer is SILU
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    y, kept = layer.forward(x.detach())
    g = torch.randn_like(x)
    want = module(x)
    assert torch.allclose(y, want, atol=1e-12)
    for _ in range(2):
        assert torch.allclose(
            layer.backward(g, kept), torch.autograd.grad(want, x, g, retain_graph=True)[0], atol=1e-12
        )
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_written_out_silu_is_told():
    assert [is_silu(m) for m in TAKEN] == [True, True] + [False] * 6


REFUSED = [
    OfOthers(), Reshaping(), Noting(), Constant(), Another(), Two(), Decorated(), Scaled(torch.ones(1, 4, 1, 1)),
    nn.Softmax(1), nn.PReLU(), nn.Bilinear(1, 1, 1), nn.GLU(), nn.MultiheadAttention(4, 1),
]  # fmt: skip


@pytest.mark.parametrize("module", REFUSED, ids=lambda m: type(m).__name__)
def test_what_is_not_for_certain_pointwise_is_refused(module):
    assert not is_pointwise(module)
    assert layer_of(module) is None
    assert Noting.seen == 0, "the source is read, not run"


def test_a_method_of_the_argument_is_taken_whatever_its_name():
    assert is_pointwise(Shadowing())
