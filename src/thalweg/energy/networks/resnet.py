"""A spectral-normalised residual network as an energy on images.

A stem, then one residual block a stage, x + conv(silu(conv(silu(x)))), halving the resolution by averages
between stages (He et al. 2016; Du & Mordatch 2019). There is no BatchNorm: with it the gradient of the summed energy
would not be each row's own. The head is `energy.networks.pooled`'s.
"""

from collections.abc import Sequence
from typing import Self

from torch import nn

from thalweg.core import check
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
    """E(x) = -f(x) nats for images (B, C, H, W).

    Args:
        shape: (C, H, W), H and W at least 8.
        channels: Channels of each stage.
        num_blocks: Residual blocks of each stage.
        num_outputs: Scores K; above 1, E is their free energy -log sum_k exp f_k.
        spectral: Whether weights are normalised to spectral norm 1.
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
        check.count(num_blocks=num_blocks)
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
