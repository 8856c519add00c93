"""A multi-layer perceptron as an energy on vectors.

f(x) = W_L silu(... silu(W_1 x + b_1)), E(x) = -f(x) (or -logsumexp of several outputs, see
`energy.base.marginal`). The activation is smooth, because sampling and score matching differentiate E once
and twice; the head has no bias, because an additive constant of E is invisible to both.
"""

from typing import Self

from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.energy.base import marginal
from thalweg.energy.shape import check_rows, check_shape


class MLPEnergy(nn.Module):
    """E(x) = -f(x) nats for vectors (B, D).

    Args:
        shape: (D,).
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        num_outputs: Scores K; above 1, E is their free energy -log sum_k exp f_k.
    """

    def __init__(self, *, shape: tuple[int] = (2,), width: int = 64, depth: int = 3, num_outputs: int = 1):
        super().__init__()
        (dim,) = self.shape = check_shape(shape, "D")
        check.count(width=width, depth=depth, num_outputs=num_outputs)
        self.num_outputs = num_outputs
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(dim if i == 0 else width, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, num_outputs, bias=False))

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(3,), width=5, depth=2)

    def outputs(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """f(x), the network's outputs before they become an energy."""
        check_rows(x, self.shape)
        return self.net(x)

    def sequence(self) -> list[nn.Module]:
        """The modules that give f(x) one after the other, for `energy.engine.fused`."""
        return list(self.net)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return marginal(self.outputs(x))
