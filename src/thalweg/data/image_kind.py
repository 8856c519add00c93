"""What images show, as far as an augmentation must know: pen strokes, or something that may be mirrored.

Both are measured on training rows alone.

**Strokes** are grey, on even ground that reaches around each of them: in 9 of 10 images all pixels of the outermost
ring are within 0.1 of their median, and so are two thirds of all pixels. Of digits it is 98 of 100 images and 83 % of
the pixels, of Fashion-MNIST, CIFAR-10 and magnetic tiles at most 3 of 100 images.

**Mirrored images are as likely** where that is so under a Gaussian of the other half of the rows. With
q(x) = -log N(x; m, C + s² I) / D up to a constant, s = 0.03, and x' the mirrored x,

    cost = mean q(x') - q(x),    gap = mean of q over the other half - mean of q over the half that m, C are of.

The gap is what a new row costs. The cost must be within 2.5 of its standard errors or 1/50 of the gap, and with two
standard errors below 1/4 of it. Of 2,000 images of CIFAR-10 it is .002 of the gap, of 300 of them -.001; of
Fashion-MNIST, whose shoes point left, .65; of digits 1.4; of 300 photographs of magnetic tiles 1.4 ± .1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MOST_ROWS = 2000  # that are looked at
LARGEST = 32  # pixels a side that are compared with their mirror image; larger images are averaged
EVEN, RING, GROUND = 0.1, 0.9, 2 / 3  # of [0, 1]; shares of images, of pixels
RESOLUTION = 0.03  # s, in units of [0, 1]: the lowest noise level of images
ERRORS, SLIGHT, PART = 2.5, 0.02, 0.25  # standard errors of the cost; shares of the gap


class Mirroring(NamedTuple):
    """What mirroring costs, and what a new row does, in nats per dimension."""

    cost: float
    error: float
    gap: float

    @property
    def allowed(self) -> bool:
        """Whether mirrored images are as likely."""
        none = abs(self.cost) < max(ERRORS * self.error, SLIGHT * self.gap)
        return none and abs(self.cost) + 2 * self.error < PART * self.gap


def of_strokes(x: Float[Tensor, "n c h w"]) -> bool:
    """Whether grey images in [0, 1] are strokes on even ground."""
    if x.shape[1] != 1 or min(x.shape[2:]) < 3:
        return False
    ring = torch.cat([x[:, 0, 0], x[:, 0, -1], x[:, 0, :, 0], x[:, 0, :, -1]], dim=1)
    ground = ring.median(1).values
    even = ((ring - ground[:, None]).abs() < EVEN).all(1).double().mean()
    near = ((x - ground[:, None, None, None]).abs() < EVEN).double().mean()
    return bool(even >= RING) and bool(near >= GROUND)


def mirroring(x: Float[Tensor, "n c h w"]) -> Mirroring:
    """The cost of mirroring images in [0, 1], of which there are four or more."""
    side = -(-max(x.shape[2:]) // LARGEST)
    x = F.avg_pool2d(x, side, ceil_mode=True) if side > 1 else x
    half = len(x) // 2
    own, other = x[:half].flatten(1), x[half : 2 * half]
    mean = own.mean(0)
    _, scales, basis = torch.linalg.svd(own - mean, full_matrices=False)
    variances = scales.square() / half

    def q(rows: Tensor) -> Tensor:
        d = rows.flatten(1) - mean
        along = d @ basis.T
        rest = d.square().sum(1) - along.square().sum(1)
        return ((along.square() / (variances + RESOLUTION**2)).sum(1) + rest / RESOLUTION**2) / (2 * d.shape[1])

    new = q(other)
    costs = q(other.flip(3)) - new
    return Mirroring(float(costs.mean()), float(costs.std()) / half**0.5, float(new.mean() - q(own).mean()))
