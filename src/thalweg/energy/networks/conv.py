"""A spectral-normalised convolutional network as an energy on images.

3 x 3 convolution, SiLU, 2 x 2 average pooling, repeated; the sum over what pixels are left; a linear head.
Each convolution's weight has spectral norm 1, which bounds how fast E can fall and keeps persistent chains
stable (Du & Mordatch 2019). Pooling by averages and SiLU keep E twice differentiable. The head is
`energy.networks.pooled`'s: free scale, no bias.
"""

from collections.abc import Sequence
from typing import Self

from torch import nn

from thalweg.energy.engine.freeze import normalise
from thalweg.energy.networks.pooled import PooledEnergy, check_image


class ConvEnergy(PooledEnergy):
    """E(x) = -f(x) for images (B, C, H, W), H and W at least 8; `channels` gives one stage an entry.

    With `num_outputs` > 1 the network gives (B, K) class scores, and E is their free energy -log sum_k exp
    f_k. `spectral=False` leaves the weights free. Rows of a batch do not see each other: there is no
    BatchNorm.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (16, 32, 64),
        num_outputs: int = 1,
        spectral: bool = True,
    ):
        image = check_image(shape, channels)
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip([image[0], *channels], channels, strict=False)):
            layers += [nn.AvgPool2d(2)] if i else []
            layers += [normalise(nn.Conv2d(c_in, c_out, 3, padding=1), spectral), nn.SiLU()]
        super().__init__(shape=image, layers=layers, width=channels[-1], num_outputs=num_outputs)

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(2, 8, 9), channels=(3, 4))
