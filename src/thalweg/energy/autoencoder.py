"""An auto-encoder as an energy: what the network cannot put right is strange, and so is what its features tell apart.

    E(x) = u(f(x)) + s |x - D(f(x))|²

f is an encoder, D a decoder that restores, u a linear head, s > 0 a learned scale in nats a squared unit. Trained by
`objective.corruption`, D is asked for the undamaged picture whatever it is shown, so D(f(x)) is also the nearest
*repair* of x that the network knows. A reconstruction error alone ranks what is simple below what is normal, whether it
is normal or not; training against negatives undoes that (normalised auto-encoders: Yoon et al. 2021; with the head
on features: Yoon et al. 2023).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.energy.shape import check_rows, check_shape


class Parts(NamedTuple):
    """All that one pass gives: energy (B,) in nats, the restored x (B, *), unit vectors for comparing views (B, K)."""

    energy: Tensor
    restored: Tensor
    embedded: Tensor


class AutoencoderEnergy(nn.Module):
    """E(x) = u(f(x)) + s |x - D(f(x))|² for images (B, C, H, W) with pixels in [0, 1]; dense layers throughout.

    `widths` are those of the encoder, the last one of the features f(x); the decoder mirrors all but
    the first and ends in a sigmoid. `embed` is the dimension in which an objective may compare two views. Costs C H W (widths[0] + widths[1])
    multiplications and what lies between; on small images dense layers train several times faster on a CPU than
    convolutions do. No layer sees more than one row.
    """

    def __init__(self, *, shape: Sequence[int] = (1, 28, 28), widths: Sequence[int] = (512, 256, 128), embed: int = 64):
        super().__init__()
        self.shape = check_shape(shape, "CHW")
        if not widths or min(widths) < 1 or embed < 1:
            raise ValueError(f"widths={list(widths)}, {embed=}: want a layer or more, each of width 1 or more")
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.encoder = nn.Sequential(nn.Flatten(), *_dense([size, *widths]), nn.SiLU())
        self.decoder = nn.Sequential(*_dense([*reversed(widths[1:] or widths), size]))
        self.project = nn.Linear(widths[-1], embed)
        self.head = nn.Linear(widths[-1], 1)
        self.scale = nn.Parameter(torch.tensor(-2.0))

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

    def parts(self, x: Float[Tensor, "b c h w"]) -> Parts:
        """Energy, restoration and embedding from one pass, for objectives that train all of them.

        The decoder trains on the features as they are and does not shape them: features that must hold every pixel
        tell less of what a picture is.
        """
        f = self.features(x)
        restored = self._decode(f.detach())
        return Parts(self._energy(x, f, restored), restored, F.normalize(self.project(f), dim=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """E(x) in nats, up to a constant."""
        f = self.features(x)
        return self._energy(x, f, self._decode(f))

    def _decode(self, f: Tensor) -> Tensor:
        return self.decoder(f).sigmoid().view(-1, *self.shape)

    def _energy(self, x: Tensor, f: Tensor, restored: Tensor) -> Tensor:
        error = (x - restored).flatten(1).square().sum(1)
        return self.head(f).squeeze(1) + F.softplus(self.scale) * error


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.SiLU()] if i else []
        layers += [nn.Linear(a, b)]
    return layers
