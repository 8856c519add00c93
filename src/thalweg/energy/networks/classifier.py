"""Joint energies of data and label, from the scores of a classifier.

E(x, y) = -f(x)[y], so p(y | x) = softmax f(x) is the classifier itself, and the marginal over labels is the free energy
E(x) = -log sum_y exp f(x)[y] (Grathwohl et al. 2020). `energy.wrappers.FixedLabels` fixes the labels of a chain.
"""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import HasOutputs, marginal
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.strided import StridedEnergy


class ClassifierEnergy(nn.Module):
    """E(x, y) = -beta f(x)[y]; without labels E(x) = -log sum_y exp(beta f(x)[y]).

    beta is `inverse_temperature`, 1 until it is set on held-out labels. The energy's constant stays unknown.

    Args:
        trunk: A network with `num_outputs=num_classes`, or any module that gives scores (B, num_classes).
        num_classes: Labels are 0 … num_classes - 1.
    """

    inverse_temperature: Tensor

    def __init__(self, trunk: nn.Module, num_classes: int):
        super().__init__()
        check.count(num_classes=num_classes)
        if isinstance(trunk, HasOutputs) and trunk.num_outputs != num_classes:
            condition = f"must be num_classes={num_classes}"
            raise UserError(condition, argument="trunk.num_outputs", value=trunk.num_outputs)
        self.trunk, self.num_classes = trunk, num_classes
        self.register_buffer("inverse_temperature", torch.ones(()))

    @classmethod
    def example(cls) -> Self:
        """Three classes on vectors."""
        return cls(MLPEnergy(shape=(3,), width=5, depth=2, num_outputs=3), 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one position, as the trunk declares it."""
        return tuple(self.trunk.shape)  # pyright: ignore[reportArgumentType]

    def logits(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b k"]:
        """beta f(x): the scores whose softmax is p(y | x)."""
        f = self.trunk.outputs(x) if isinstance(self.trunk, HasOutputs) else self.trunk(x)
        if f.shape != (len(x), self.num_classes):
            condition = f"must give scores of shape {(len(x), self.num_classes)}, not {tuple(f.shape)}"
            raise UserError(condition, argument="trunk")
        return self.inverse_temperature * f

    def joint(self, x: Float[Tensor, "b *d"], labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """E(x, labels) in nats."""
        return -self.logits(x).gather(1, labels[:, None]).squeeze(1)

    def forward(self, x: Float[Tensor, "b *d"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        """E(x, labels) in nats, or the marginal E(x) without labels."""
        return marginal(self.logits(x)) if labels is None else self.joint(x, labels)


class JointStridedEnergy(ClassifierEnergy):
    """`ClassifierEnergy` over a `StridedEnergy` for images (B, C, H, W).

    Args:
        shape: (C, H, W), H and W at least 8.
        num_classes: Number of classes, 2 or more.
        channels: Channels after each halving of the resolution.
        hidden: Width of the dense layer.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        channels: Sequence[int] = (32, 64, 64),
        hidden: int = 128,
    ):
        check.whole("num_classes", num_classes, 2)
        trunk = StridedEnergy(shape=shape, channels=channels, hidden=hidden, num_outputs=num_classes)
        super().__init__(trunk, num_classes)

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(1, 8, 8), num_classes=3, channels=(4,), hidden=8)
