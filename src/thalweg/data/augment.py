"""Augmentation: slightly altered copies of the training data beside the data themselves.

A small set is learned by heart: an energy then holds strangers for stranger than they are, and what it says of them
hangs together badly. Altered copies cure that at a price, since their law is not the data's; their share can fade.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Images under random affine maps: x'(p) = x(A p + b), A = I + `stretch` N(0, 1), b = `shift` N(0, 1), bilinear.

    A share of `share` of the batch is warped, times max(0, 1 - progress / `until`) where `until` is given, so that the
    last part of training sees the data alone; the rest stays as it is. Coordinates p run over [-1, 1] both ways, so
    shift 0.03 is 0.4 pixels of 28; what comes in from outside repeats the border. `stretch` is the deviation of each of
    A's entries: turning, scaling and shearing at once.
    """

    share: float = 0.5
    until: float | None = None
    stretch: float = 0.04
    shift: float = 0.03

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise UserError(f"share={self.share}: a share lies in [0, 1]")
        if self.until is not None and not 0 < self.until <= 1:
            raise UserError(f"until={self.until}: a share of the training lies in (0, 1]")
        if not (self.stretch >= 0 and self.shift >= 0):
            raise UserError(f"stretch={self.stretch}, shift={self.shift}: want zero or more")

    def __call__(self, x: Float[Tensor, "b c h w"], generator: Generator, progress: float) -> Float[Tensor, "b c h w"]:
        """The batch, some of it warped; UserError for what is not images. `progress` in [0, 1) is the share done."""
        if x.ndim != 4:
            raise UserError(
                f"augment: Warp is for images (B, C, H, W), the data have shape {tuple(x.shape)}; leave out"
            )
        share = self.share * (1.0 if self.until is None else max(0.0, 1 - progress / self.until))
        chosen = torch.rand(len(x), generator=generator) < share
        matrix = torch.eye(2) + self.stretch * torch.randn(len(x), 2, 2, generator=generator)
        offset = self.shift * torch.randn(len(x), 2, 1, generator=generator)
        if not share:
            return x
        grid = F.affine_grid(torch.cat([matrix, offset], 2).to(x), list(x.shape), align_corners=False)
        warped = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        return torch.where(chosen.to(x.device)[:, None, None, None], warped, x)
