"""A spectral-normalised convolutional network as an energy on images.

3 x 3 convolution, SiLU, 2 x 2 average pooling, repeated; the sum over what pixels are left; a linear head.
Each convolution's weight has spectral norm 1, which bounds how fast E can fall and keeps persistent chains
stable (Du & Mordatch 2019). Pooling by averages and SiLU keep E twice differentiable. The head is neither
normalised, since it sets the scale of E in nats, nor biased, since a constant of E is invisible to its
gradient.
"""

from collections.abc import Sequence
from typing import Self

from jaxtyping import Float
from torch import Tensor, nn

from thalweg.energy.base import check_image_shape, marginal
from thalweg.energy.spectral import normalise


class ConvEnergy(nn.Module):
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
        super().__init__()
        self.shape, self.num_outputs = check_image_shape(shape, num_halvings=len(channels) - 1), num_outputs
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip([self.shape[0], *channels], channels, strict=False)):
            layers += [nn.AvgPool2d(2)] if i else []
            layers += [normalise(nn.Conv2d(c_in, c_out, 3, padding=1), spectral), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], num_outputs, bias=False)

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(2, 8, 9), channels=(3, 4))

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """What the head reads: the last stage summed over its pixels."""
        return self.trunk(x).sum((2, 3))

    def outputs(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """f(x), the network's outputs before they become an energy."""
        return self.head(self.features(x))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return marginal(self.outputs(x))
