"""An auto-encoder with an energy on its features, and a decoder that restores images.

    E(x) = u(f(x)),    restored x = D(f(x))

f is an encoder, u a linear head, D a decoder. `objective.restoration` trains u to tell data from damaged data, f to
tell two views of one image from those of others, and D to restore the undamaged image. The reconstruction error is no
part of the energy: it is low for every simple image, normal or not (Yoon et al. 2021 correct that by negatives; with a
head on features, Yoon et al. 2023).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.energy.shape import check_rows, check_shape, check_sizes


class Parts(NamedTuple):
    """The results of one pass: energy (B,) in nats, restored x (B, *), unit vectors for comparing views (B, K)."""

    energy: Tensor
    restored: Tensor
    embedded: Tensor


class AutoencoderEnergy(nn.Module):
    """E(x) = u(f(x)) nats for images (B, C, H, W) with pixels in [0, 1], by dense layers with SiLU.

    On small images dense layers train several times faster on a CPU than convolutions. The decoder ends in a sigmoid.

    Args:
        shape: (C, H, W).
        widths: Widths of the encoder's layers, the last one that of f(x); the decoder has them the other way round,
            without the first.
        embed: Dimension of the vectors by which an objective compares two views.
    """

    def __init__(self, *, shape: Sequence[int] = (1, 28, 28), widths: Sequence[int] = (512, 256, 128), embed: int = 64):
        super().__init__()
        self.shape = check_shape(shape, "CHW")
        check_sizes(widths=widths)
        check.count(embed=embed)
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.encoder = nn.Sequential(nn.Flatten(), *_dense([size, *widths]), nn.SiLU())
        self.decoder = nn.Sequential(*_dense([*reversed(widths[1:] or widths), size]))
        self.project = nn.Linear(widths[-1], embed)
        self.head = nn.Linear(widths[-1], 1)

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(2, 8, 9), widths=(12, 6), embed=3)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """f(x)."""
        check_rows(x, self.shape)
        return self.encoder(x)

    def restore(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """D(f(x)), pixels in (0, 1)."""
        return self._decode(self.features(x))

    def embed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Unit vectors in which views are compared."""
        return F.normalize(self.project(self.features(x)), dim=1)

    def parts(self, x: Float[Tensor, "b c h w"]) -> Parts:
        """Energy, restoration and embedding from one pass, for objectives that train all of them.

        The decoder's gradient stops at the features, since features that hold every pixel separate images worse.
        """
        f = self.features(x)
        return Parts(self.head(f).squeeze(1), self._decode(f.detach()), F.normalize(self.project(f), dim=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """E(x) in nats, up to a constant."""
        return self.head(self.features(x)).squeeze(1)

    def _decode(self, f: Tensor) -> Tensor:
        return self.decoder(f).sigmoid().view(-1, *self.shape)


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.SiLU()] if i else []
        layers += [nn.Linear(a, b)]
    return layers
