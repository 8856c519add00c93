"""An energy of data and label together, read off a classifier's outputs.

E(x, y) = -f(x)[y], so p(y | x) = softmax f(x) is the classifier itself, and the marginal over labels is the
free energy E(x) = -log sum_y exp f(x)[y] (Grathwohl et al. 2020). To hold the label fixed in a chain, wrap:
`compose.FixedLabels`.
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thalweg.energy.base import marginal
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.strided import StridedEnergy


class ClassifierEnergy(nn.Module):
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


class JointStridedEnergy(nn.Module):
    """E(x) = -log sum_y exp f(x)[y], and by `joint` E(x, y) = -f(x)[y], f a `StridedEnergy` with one score a class.

    Labels 0 … `num_classes` - 1. The energy's constant stays unknown. Called with labels it is E(x, labels), as
    conditional chains want it.
    """

    inverse_temperature: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        channels: Sequence[int] = (32, 64, 64),
        hidden: int = 128,
    ):
        super().__init__()
        self.num_classes = check_classes(num_classes, hidden)
        self.scores = StridedEnergy(shape=shape, channels=channels, hidden=hidden, num_outputs=num_classes)
        self.shape = self.scores.shape
        self.register_buffer("inverse_temperature", torch.ones(()))

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(1, 8, 8), num_classes=3, channels=(4,), hidden=8)

    def logits(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """beta f(x), beta = `inverse_temperature` of held-out data; E(x, y) and E(x) have that temperature too."""
        return self.inverse_temperature * self.scores.outputs(x)

    def joint(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """E(x, labels) in nats."""
        return -self.logits(x).gather(1, labels[:, None]).squeeze(1)

    def forward(self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        """E(x), or E(x, labels), in nats."""
        return marginal(self.logits(x)) if labels is None else self.joint(x, labels)


def check_classes(num_classes: int, hidden: int) -> int:
    """`num_classes`; ValueError unless there are two classes or more and a hidden unit or more."""
    if num_classes < 2 or hidden < 1:
        raise ValueError(f"{num_classes=}, {hidden=}: want two classes or more, and a hidden unit or more")
    return num_classes
