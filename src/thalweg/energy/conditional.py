"""An energy of data and label together, read off a classifier's outputs.

E(x, y) = -f(x)[y], so p(y | x) = softmax f(x) is the classifier itself, and the marginal over labels is the
free energy E(x) = -log sum_y exp f(x)[y] (Grathwohl et al. 2020). To hold the label fixed in a chain, wrap:
`compose.Conditioned`.
"""

from typing import Self

from jaxtyping import Float, Int
from torch import Tensor, nn

from thalweg.energy.base import marginal
from thalweg.energy.mlp import MLPEnergy


class Conditional(nn.Module):
    """E(x, y) = -f(x)[y]; without labels E(x) = -log sum_y exp f(x)[y].

    `trunk` is one of our networks with `num_outputs=num_classes`, or any module that gives (B, num_classes)
    scores.
    """

    def __init__(self, trunk: nn.Module, num_classes: int):
        super().__init__()
        given = getattr(trunk, "num_outputs", num_classes)
        if num_classes < 1 or given != num_classes:
            raise ValueError(f"num_classes={num_classes}, but the trunk has num_outputs={given}: make them equal")
        self.trunk, self.num_classes = trunk, num_classes

    @classmethod
    def example(cls) -> Self:
        """Three classes on vectors."""
        return cls(MLPEnergy(shape=(3,), width=5, depth=2, num_outputs=3), 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one position, as the trunk declares it."""
        return tuple(self.trunk.shape)  # pyright: ignore[reportArgumentType]

    def logits(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b k"]:
        """f(x): the scores whose softmax is p(y | x)."""
        outputs = getattr(self.trunk, "outputs", self.trunk)
        f = outputs(x)
        if f.shape != (len(x), self.num_classes):
            raise ValueError(f"the trunk gave shape {tuple(f.shape)}, want {(len(x), self.num_classes)}")
        return f

    def forward(self, x: Float[Tensor, "b *d"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        """E(x, labels) in nats, or the marginal E(x) without labels."""
        f = self.logits(x)
        return marginal(f) if labels is None else -f.gather(1, labels[:, None]).squeeze(1)
