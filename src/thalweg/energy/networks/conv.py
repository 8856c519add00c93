"""A spectral-normalised convolutional network as an energy on images.

3 x 3 convolution, SiLU, 2 x 2 average pooling, repeated; then the sum over the pixels and a linear head. Each
convolution's weight has spectral norm 1, which bounds the gradient and keeps persistent chains stable (Du & Mordatch
2019). Average pooling and SiLU keep E twice differentiable. The head is `energy.networks.pooled`'s.
"""

from collections.abc import Sequence
from typing import Self

from torch import nn

from thalweg.energy.engine.freeze import normalise
from thalweg.energy.networks.pooled import PooledEnergy, check_image


class ConvEnergy(PooledEnergy):
    """E(x) = -f(x) nats for images (B, C, H, W).

    Args:
        shape: (C, H, W), H and W at least 8.
        channels: Channels of each stage.
        num_outputs: Scores K; above 1, E is their free energy -log sum_k exp f_k.
        spectral: Whether weights are normalised to spectral norm 1.
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
