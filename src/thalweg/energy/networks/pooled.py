"""The base of energies on images that sum their last feature maps over the pixels and end in a linear head."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import marginal
from thalweg.energy.engine.layers import PixelSum
from thalweg.energy.shape import check_shape, check_sizes, wrong_rows


def check_image(shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as a tuple; UserError for a shape that cannot be halved between the stages, or for no channels."""
    check_sizes(channels=channels)
    image, least = check_shape(shape, "CHW"), max(8, 2 ** (len(channels) - 1))
    if min(image[1:]) < least:
        condition = f"must be (channels, height, width), {least} pixels a side or more"
        raise UserError(condition, argument="shape", value=image)
    return image[0], image[1], image[2]


class PooledEnergy(nn.Module):
    """Abstract E(x) = -f(x), f(x) = W sum_pixels trunk(x); with K > 1 outputs their free energy -log sum_k exp f_k.

    The head is neither normalised, since it sets the scale of E in nats, nor biased, since a constant of E is
    invisible to its gradient.
    """

    def __init__(self, *, shape: tuple[int, int, int], layers: Sequence[nn.Module], width: int, num_outputs: int):
        super().__init__()
        check.count(num_outputs=num_outputs)
        self.shape, self.num_outputs = shape, num_outputs
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_outputs, bias=False)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """The input of the head, (B, F): the last stage summed over its pixels."""
        if x.ndim != 4 or x.shape[1] != self.shape[0]:  # any size of image will do
            raise wrong_rows(x, self.shape)
        return self.trunk(x).sum((2, 3))

    def sequence(self) -> list[nn.Module]:
        """The modules that give f(x) one after the other, for `energy.engine.fused`."""
        return [*self.trunk, PixelSum(), self.head]

    def outputs(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """f(x), the network's outputs before they become an energy."""
        return self.head(self.features(x))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """E(x) in nats."""
        return marginal(self.outputs(x))
