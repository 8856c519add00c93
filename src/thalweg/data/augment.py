"""Augmentation: a share of each batch is slightly altered.

It reduces overfitting on a small set. The law of altered data differs from that of the data, so their share can fall to
zero during training.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Random affine maps of images: x'(p) = x(A p + b), A = I + `stretch` N(0, 1), b = `shift` N(0, 1), bilinear.

    Coordinates p are in [-1, 1], so shift 0.03 is 0.4 pixels of 28. Pixels outside repeat the border.

    Args:
        share: Share of the batch that is altered.
        until: Share of training after which no image is altered; `share` falls linearly until then. None: it is
            constant.
        stretch: Deviation of each entry of A: rotation, scaling and shear.
        shift: Deviation of each entry of b, in half sides.
    """

    share: float = 0.5
    until: float | None = None
    stretch: float = 0.04
    shift: float = 0.03

    def __post_init__(self):
        check.share(share=self.share)
        if self.until is not None:
            check.share(until=self.until)
            check.positive(until=self.until)
        check.non_negative(stretch=self.stretch, shift=self.shift)

    def __call__(self, x: Float[Tensor, "b c h w"], generator: Generator, progress: float) -> Float[Tensor, "b c h w"]:
        """The altered batch; UserError unless x is images. `progress` in [0, 1) is the share of training done."""
        if x.ndim != 4:
            condition = f"must be images (B, C, H, W) for Warp; they have the shape {tuple(x.shape)}"
            raise UserError(condition, argument="data", hint="leave out augment")
        share = self.share * (1.0 if self.until is None else max(0.0, 1 - progress / self.until))
        place = {"generator": generator, "device": generator.device}
        chosen = torch.rand(len(x), **place) < share
        matrix = torch.eye(2, device=generator.device) + self.stretch * torch.randn(len(x), 2, 2, **place)
        offset = self.shift * torch.randn(len(x), 2, 1, **place)
        if not share:
            return x
        grid = F.affine_grid(torch.cat([matrix, offset], 2).to(x), list(x.shape), align_corners=False)
        warped = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        return torch.where(chosen.to(x.device)[:, None, None, None], warped, x)
