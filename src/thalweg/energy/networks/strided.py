"""A strided convolutional network with a dense head as an energy on images.

A 4 x 4 convolution with stride 2 and SiLU, repeated: E = -w . silu(V flatten(trunk(x))). Each convolution halves the
resolution, so most of the arithmetic is done on small maps. The dense head keeps the position of features, which a sum
over pixels loses.
"""

from collections.abc import Sequence
from typing import Self

from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.energy.base import marginal
from thalweg.energy.engine.freeze import normalise
from thalweg.energy.engine.im2col import PatchConv2d
from thalweg.energy.networks.pooled import check_image
from thalweg.energy.shape import check_rows


class StridedEnergy(nn.Module):
    """E(x) = -f(x) nats for images (B, C, H, W).

    Args:
        shape: (C, H, W), H and W at least 8.
        channels: Channels after each halving of the resolution.
        hidden: Width of the dense layer before the linear head.
        num_outputs: Scores K; above 1, E is their free energy -log sum_k exp f_k.
        spectral: Whether the weights of all but the last layer are normalised to spectral norm 1.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (32, 64, 64),
        hidden: int = 128,
        num_outputs: int = 1,
        spectral: bool = False,
    ):
        super().__init__()
        image = check_image(shape, (*channels, channels[-1]) if channels else channels)
        check.count(hidden=hidden, num_outputs=num_outputs)
        self.shape, self.num_outputs = image, num_outputs
        layers: list[nn.Module] = []
        _, height, width = image
        for c_in, c_out in zip([image[0], *channels], channels, strict=False):
            conv = PatchConv2d if c_in == 1 else nn.Conv2d
            layers += [normalise(conv(c_in, c_out, 4, stride=2, padding=1), spectral), nn.SiLU()]
            height, width = height // 2, width // 2
        dense = normalise(nn.Linear(channels[-1] * height * width, hidden), spectral)
        self.trunk = nn.Sequential(*layers, nn.Flatten(), dense, nn.SiLU())
        self.head = nn.Linear(hidden, num_outputs, bias=False)

    def outputs(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """f(x), the network's outputs before they become an energy."""
        check_rows(x, self.shape)
        return self.head(self.trunk(x))

    def sequence(self) -> list[nn.Module]:
        """The modules that give f(x) one after the other, for `energy.engine.fused`."""
        return [*self.trunk, self.head]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return marginal(self.outputs(x))

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(2, 8, 9), channels=(3, 4), hidden=5)
