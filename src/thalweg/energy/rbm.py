"""Energies of units that are 0 or 1, small enough for every state to be counted.

A restricted Boltzmann machine has visible units v and hidden units h, joined across but not within the two
layers (Smolensky 1986): E(v, h) = -b·v - c·h - h·Wv. Summed over h it is an ordinary energy of v, smooth in v
and in the parameters; given one layer, the units of the other are independent, which is what block Gibbs
sampling uses (`thalweg.sampler.gibbs`).
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thalweg.core import check
from thalweg.energy.base import Conditionals
from thalweg.energy.enumeration import state_chunks
from thalweg.energy.shape import check_shape


class RBMEnergy(nn.Module):
    """A restricted Boltzmann machine: E(v) = -b·v - sum_j softplus(c_j + W_j·v) nats for v in {0, 1}, (B, *).

    This is the free energy of binary hidden units (Freund & Haussler 1992; Hinton 2002). b (D,) and c (H,) begin at
    zero, W (H, D) at random (Hinton 2010).

    Args:
        shape: Shape of one position, D units in all.
        num_hidden: Hidden units H.
        weight_std: Standard deviation of the first weights.
    """

    num_states = 2

    def __init__(self, *, shape: Sequence[int] = (2,), num_hidden: int = 4, weight_std: float = 0.01):
        super().__init__()
        check.count(num_hidden=num_hidden)
        check.non_negative(weight_std=weight_std)
        self.shape, self.num_hidden = check_shape(shape), num_hidden
        dim = math.prod(self.shape)
        self.weight = nn.Parameter(weight_std * torch.randn(num_hidden, dim))
        self.visible_bias = nn.Parameter(torch.zeros(dim))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))

    @classmethod
    def example(cls) -> Self:
        """Two visible and three hidden units, strongly joined."""
        return cls(shape=(2,), num_hidden=3, weight_std=1.0)

    @property
    def conditionals(self) -> Conditionals:
        """p(h_j = 1 | v) = sigmoid(c_j + W_j·v) and p(v_i = 1 | h) = sigmoid(b_i + h·W_i), as log-odds."""
        return Conditionals(self._hidden, self._visible)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n *d"]) -> Self:
        """Set b to the log-odds of each unit in data x of 0 and 1, (n + 1/2) / (N + 1) (Hinton 2010): where W = 0, the
        most likely machine.
        """
        self.visible_bias.copy_(((x.flatten(1).sum(0) + 0.5) / (len(x) + 1)).logit())
        return self

    def forward(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """E(x) in nats; smooth, and defined between 0 and 1 too. Parameters are taken in x's precision."""
        return -(x.flatten(1) @ self.visible_bias.to(x.dtype)) - _softplus(self._hidden(x)).sum(1)

    def log_z(self) -> Float[Tensor, ""]:
        """log sum_v exp(-E(v)) in nats, exact, with its gradient: counts the 2^n states of the smaller layer.

        The other layer is summed in closed form. UserError where n is over 20.
        """
        weight, counted, summed = self.weight, self.hidden_bias, self.visible_bias
        if len(counted) > len(summed):
            weight, counted, summed = weight.T, summed, counted
        parts = [
            torch.logsumexp(s @ counted + _softplus(summed + s @ weight).sum(1), 0)
            for s in state_chunks(len(counted), weight)
        ]
        return torch.logsumexp(torch.stack(parts), 0)

    def _hidden(self, v: Tensor) -> Tensor:
        return functional.linear(v.flatten(1), self.weight.to(v.dtype), self.hidden_bias.to(v.dtype))

    def _visible(self, h: Tensor) -> Tensor:
        return (self.visible_bias.to(h.dtype) + h @ self.weight.to(h.dtype)).unflatten(1, self.shape)


def _softplus(x: Tensor) -> Tensor:
    # torch's default turns linear at 20, an error of 2e-9, which float64 sees; at 40 none does.
    return functional.softplus(x, threshold=40)
