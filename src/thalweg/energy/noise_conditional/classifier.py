"""Joint energies E(x, y) of data and label whose marginal over labels is trained as an energy in its own right.

Any classifier with scores f has p(y | x) = softmax f(x) and E(x, y) = -f(x)[y], E(x) = -log sum_y exp f(x)[y]
(Grathwohl et al. 2020). Adding a function of x alone to all scores changes the second and not the first, so the scores
of `JointUNetEnergy` are written as

    f(x, t)[y] = -U(x, t) + log softmax(beta l(x, t))[y],

U the normalised noise-conditional energy of a U-Net and l a readout of that network's first stages. Then E(x) = U(x)
exactly, -E(x, y) = log p(x) + log p(y | x) in nats, and a class is sampled by the same annealing as the data, with
grad log p(y | x, t) as a force.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from thalweg.core import check
from thalweg.energy.density.gaussian import SpectralGaussian
from thalweg.energy.noise_conditional.unet import UNetEnergy


class JointUNetEnergy(nn.Module):
    """U(y, t), and by `joint` E(y, label, t) = U(y, t) - log p(label | y, t), for images (B, C, H, W).

    U is a `UNetEnergy`, `density`. The classifier reads its network after the first stage and the first halving, which
    costs a seventh of the energy's training step.

    Args:
        shape: (C, H, W).
        num_classes: Number of classes K, 2 or more; labels are 0 … K - 1.
        hidden: Width of the classifier's dense layer.
        widths: As in `UNetEnergy`, like `num_blocks`, `embed`, `sigma_min` and `sigma_max`.
    """

    inverse_temperature: Tensor

    def __init__(
        self,
        *,
        shape: tuple[int, int, int],
        num_classes: int = 10,
        hidden: int = 128,
        widths: Sequence[int] = (48, 96),
        num_blocks: Sequence[int] = (1, 2),
        embed: int = 64,
        sigma_min: float = 0.03,
        sigma_max: float = 5.0,
    ):
        super().__init__()
        self.num_classes = check.whole("num_classes", num_classes, 2)
        check.count(hidden=hidden)
        levels = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        self.density = UNetEnergy(shape=shape, widths=widths, num_blocks=num_blocks, embed=embed, **levels)
        self.shape, self.t_min, self.t_max = self.density.shape, self.density.t_min, self.density.t_max
        height, width = (-(-side // self.density.multiple) * self.density.multiple // 2 for side in self.shape[1:])
        if len(widths) > 1:
            height, width = height // 2, width // 2
        size = ((height + 1) // 2) * ((width + 1) // 2)
        self.readout = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(widths[min(1, len(widths) - 1)], hidden, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(size * hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, num_classes),
        )
        self.register_buffer("inverse_temperature", torch.ones(()))

    @classmethod
    def example(cls) -> Self:
        """A small instance for tests and documentation."""
        return cls(shape=(1, 8, 8), num_classes=3, hidden=8, widths=(8, 16), num_blocks=(1, 1), embed=16)

    @property
    def anchor(self) -> SpectralGaussian:
        """The density's own: the data's mean and covariance, smoothed."""
        return self.density.anchor

    def fit(self, x: Float[Tensor, "n *d"]) -> Self:
        """Set the anchor's mean and covariance from training data in model units."""
        self.density.fit(x)
        return self

    def forward(self, y: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """U(y, t) in nats, the marginal over labels."""
        return self.density(y, t)

    def value_and_grads(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """(U, dU/dy, dU/dt), as `AnchoredEnergy.value_and_grads`."""
        return self.density.value_and_grads(y, t)

    def value_and_grad(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(U, dU/dy), as `AnchoredEnergy.value_and_grad`."""
        return self.density.value_and_grad(y, t)

    def prior(self, n: int, generator: Generator) -> Float[Tensor, "n *d"]:
        """n draws of y at t_max."""
        return self.density.prior(n, generator)

    def prior_log_prob(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """log p(y) at t_max, in nats."""
        return self.density.prior_log_prob(y)

    def logits(self, y: Float[Tensor, "b c h w"], t: Float[Tensor, " b"] | None = None) -> Float[Tensor, "b k"]:
        """beta(t) l(y, t), whose softmax is p(label | y, t); at the lowest noise level where t is not given.

        beta(t) = 1 + (beta - 1) t_min / t, beta = `inverse_temperature`: what `bundle.temperature` finds on
        held-out data corrects the lowest level, where images are classified, and fades above it.
        """
        t = y.new_full((len(y),), self.t_min) if t is None else t
        scores = self.readout(self.density.features(y, t))
        return (1 + (self.inverse_temperature - 1) * self.t_min / t)[:, None] * scores

    def joint(
        self, y: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], t: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, " b"]:
        """E(y, label, t) in nats, -log p_t(y, label) where U is normalised; t as in `logits`."""
        t = y.new_full((len(y),), self.t_min) if t is None else t
        return self(y, t) + F.cross_entropy(self.logits(y, t), labels, reduction="none")
