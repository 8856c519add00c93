"""Augmentation: a share of each batch is slightly altered, in a way that the recipe names or `ByKind` chooses.

It reduces overfitting on a small set. The law of altered data differs from that of the data, so their share can fall to
zero during training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.data.image_kind import MOST_ROWS, mirroring, of_strokes


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
        _require_images(x, "Warp")
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


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirror images: left and right change places. Right where a mirrored image is as likely as it was.

    Args:
        share: Share of the batch that is mirrored.
    """

    share: float = 0.5

    def __post_init__(self):
        check.share(share=self.share)

    def __call__(self, x: Float[Tensor, "b c h w"], generator: Generator, progress: float) -> Float[Tensor, "b c h w"]:
        """The altered batch; UserError unless x is images."""
        _require_images(x, "Flip")
        chosen = torch.rand(len(x), generator=generator, device=generator.device) < self.share
        return torch.where(chosen.to(x.device)[:, None, None, None], x.flip(3), x)


@dataclass(frozen=True, kw_only=True)
class ByKind:
    """The augmentation that suits what the images show (`data.image_kind`); a run resolves it when it begins.

    Args:
        strokes: For pen strokes on even ground, which stay strokes when they are warped. A photograph is blurred, and
            its borders move.
        mirrored: For other images whose law is the same in the mirror.
    """

    strokes: Callable[..., Tensor] = field(default_factory=Warp)
    mirrored: Callable[..., Tensor] = field(default_factory=Flip)

    def choose(self, x: Float[Tensor, "n c h w"]) -> tuple[str | None, str]:
        """("strokes", "mirrored" or None, the reason) for training images in [0, 1], of which the first 2,000 count."""
        _require_images(x, "ByKind")
        x = x[:MOST_ROWS]
        if of_strokes(x):
            return "strokes", "the images are strokes on even ground"
        found = mirroring(x)
        measured = f"mirroring costs {found.cost:.3g} ± {found.error:.2g} nats per dimension"
        beside = f"where a new image costs {found.gap:.3g}"
        if found.allowed:
            return "mirrored", f"the images are no strokes, and as likely in the mirror: {measured}, {beside}"
        return None, f"the images are no strokes, and not as likely in the mirror: {measured}, {beside}"

    def __call__(self, x: Tensor, generator: Generator, progress: float) -> Any:
        """UserError: the choice needs the training images."""
        _require_images(x, "ByKind")
        hint = "call choose(x) with training images, or take Warp or Flip"
        raise UserError("must be resolved by a run", argument="augment", hint=hint)


def _require_images(x: Tensor, name: str) -> None:
    if x.ndim != 4:
        condition = f"must be images (B, C, H, W) for {name}; they have the shape {tuple(x.shape)}"
        raise UserError(condition, argument="data", hint="leave out augment")
