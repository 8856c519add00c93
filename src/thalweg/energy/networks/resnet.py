"""A spectral-normalised residual network as an energy on images.

A stem, then one residual block a stage, x + conv(silu(conv(silu(x)))), halving the resolution by averages
between stages (He et al. 2016; Du & Mordatch 2019). No BatchNorm: it would let the rows of a batch see each
other, and then the gradient of the summed energy is not each row's own. Head as in
`energy.networks.pooled`: free scale, no bias.
"""

from collections.abc import Sequence
from typing import Self

from torch import nn

from thalweg.energy.engine.freeze import normalise
from thalweg.energy.engine.layers import ResidualBlock
from thalweg.energy.networks.pooled import PooledEnergy, check_image


def _block(c_in: int, c_out: int, spectral: bool) -> ResidualBlock:
    """skip(x) + conv(silu(conv(silu(x)))), the skip being the identity or a 1 x 1 convolution."""
    residual = nn.Sequential(
        nn.SiLU(),
        normalise(nn.Conv2d(c_in, c_out, 3, padding=1), spectral),
        nn.SiLU(),
        normalise(nn.Conv2d(c_out, c_out, 3, padding=1), spectral),
    )
    skip = nn.Identity() if c_in == c_out else normalise(nn.Conv2d(c_in, c_out, 1, bias=False), spectral)
    return ResidualBlock(residual, skip)


class ResNetEnergy(PooledEnergy):
    """E(x) = -f(x) for images (B, C, H, W), H and W at least 8; `channels` gives one stage an entry.

    With `num_outputs` > 1 the network gives (B, K) class scores, and E is their free energy -log sum_k exp
    f_k. `num_blocks` residual blocks a stage; `spectral=False` leaves the weights free.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (32, 64, 128),
        num_blocks: int = 1,
        num_outputs: int = 1,
        spectral: bool = True,
    ):
        image = check_image(shape, channels)
        if num_blocks < 1:
            raise ValueError(f"{num_blocks=}: want at least one block a stage")
        layers: list[nn.Module] = [normalise(nn.Conv2d(image[0], channels[0], 3, padding=1), spectral)]
        c_in = channels[0]
        for i, c_out in enumerate(channels):
            layers += [nn.AvgPool2d(2)] if i else []
            for _ in range(num_blocks):
                layers.append(_block(c_in, c_out, spectral))
                c_in = c_out
        super().__init__(shape=image, layers=[*layers, nn.SiLU()], width=c_in, num_outputs=num_outputs)

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(1, 9, 8), channels=(3, 4))
