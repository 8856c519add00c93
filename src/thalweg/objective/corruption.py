"""Damaged images as negatives of noise-contrastive training.

Each kind of damage keeps local features of the data (edges, brightness) and changes the form, so that the energy cannot
tell damage by sharpness or brightness. Some kinds give images that are simpler than any of the data. No labels are
used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError

KINDS = ("elastic", "cutmix", "cutout", "half_erase", "overlay", "rotate_flip")
CELLS = 4  # control points of a bend, a side
Images = Float[Tensor, "b c h w"]


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Damages each row by one of `kinds`; the batch is divided evenly among them.

    - "elastic": an affine map far from the identity and a smooth displacement;
    - "cutmix": one side of a random line from another row;
    - "cutout": a disc around a foreground pixel erased;
    - "half_erase": one side of a random line erased;
    - "overlay": the foreground in a disc of another row added;
    - "rotate_flip": a rotation by 90, 180 or 270 degrees, a mirror image, or both; by 180 only if not square.

    Lengths are in half sides of the image. Erased pixels get the median of the row's border. For vectors (B, D) there
    is one kind: each entry, with probability 1/2, from another row.

    Args:
        kinds: The kinds in use.
        stretch: Deviation of each entry of the affine map of "elastic".
        shift: Deviation of its shift.
        bend: Deviation of its displacement.
        hole: Least and largest radius of a disc.
        offset: Deviation of the distance of a line from the centre.
    """

    kinds: Sequence[str] = KINDS
    stretch: float = 0.25
    shift: float = 0.08
    bend: float = 0.18
    hole: tuple[float, float] = (0.25, 0.6)
    offset: float = 0.3

    def __post_init__(self):
        if not self.kinds or any(kind not in KINDS for kind in self.kinds):
            raise UserError(f"must be one or more of {', '.join(KINDS)}", argument="kinds", value=list(self.kinds))
        check.non_negative(stretch=self.stretch, shift=self.shift, bend=self.bend, offset=self.offset)
        if not 0 < self.hole[0] <= self.hole[1]:
            raise UserError("must be two radii (least, largest) above zero", argument="hole", value=tuple(self.hole))

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """The batch, every row damaged."""
        if x.ndim != 4:
            mine = torch.rand(x.shape, generator=generator, device=x.device) < 0.5
            return torch.where(mine, x, _other(x, generator))
        parts = [part for part in x.chunk(len(self.kinds)) if len(part)]
        damage = {
            "elastic": self._elastic,
            "cutmix": self._cutmix,
            "cutout": self._cutout,
            "half_erase": self._half_erase,
            "overlay": self._overlay,
            "rotate_flip": self._rotate_flip,
        }
        return torch.cat([damage[k](p, generator) for k, p in zip(self.kinds, parts, strict=False)])

    def _elastic(self, x: Images, generator: Generator) -> Images:
        return warp(x, generator, stretch=self.stretch, shift=self.shift, bend=self.bend)

    def _cutmix(self, x: Images, generator: Generator) -> Images:
        return torch.lerp(_other(x, generator), x, self._side(x, generator))

    def _cutout(self, x: Images, generator: Generator) -> Images:
        return torch.lerp(x, _background(x), self._disc(x, generator))

    def _half_erase(self, x: Images, generator: Generator) -> Images:
        return torch.lerp(_background(x), x, self._side(x, generator))

    def _overlay(self, x: Images, generator: Generator) -> Images:
        other = _other(x, generator)
        piece = torch.lerp(_background(other), other, self._disc(other, generator))
        more = (piece - _background(other)).abs() > (x - _background(x)).abs()
        return torch.where(more, piece, x)

    def _rotate_flip(self, x: Images, generator: Generator) -> Images:
        square = x.shape[2] == x.shape[3]
        which = torch.randint(1, 8 if square else 4, (len(x),), generator=generator, device=x.device)
        out = x.clone()
        for i in range(1, 8 if square else 4):
            turns, mirror = (i % 4, i >= 4) if square else (2 * (i % 2), i >= 2)
            y = torch.rot90(x, turns, (2, 3))
            out = torch.where((which == i)[:, None, None, None], y.flip(3) if mirror else y, out)
        return out

    def _side(self, x: Images, generator: Generator) -> Tensor:
        """1 on one side of a random line, 0 on the other, with a soft edge, (B, 1, H, W)."""
        gx, gy = _grid(x)
        angle = 2 * math.pi * torch.rand(len(x), 1, 1, generator=generator, device=x.device)
        offset = self.offset * torch.randn(len(x), 1, 1, generator=generator, device=x.device)
        return torch.sigmoid((gx * angle.cos() + gy * angle.sin() - offset) / 0.08).unsqueeze(1)

    def _disc(self, x: Images, generator: Generator) -> Tensor:
        """1 in a disc around a random foreground pixel, 0 outside, (B, 1, H, W)."""
        gx, gy = _grid(x)
        contrast = (x - _background(x)).abs().sum(1).flatten(1)
        at = (contrast * torch.rand(contrast.shape, generator=generator, device=x.device)).argmax(1)
        low, high = self.hole
        radius = low + (high - low) * torch.rand(len(x), 1, 1, generator=generator, device=x.device)
        cx, cy = (g.flatten()[at][:, None, None] for g in (gx, gy))
        return torch.sigmoid((radius - ((gx - cx).square() + (gy - cy).square()).sqrt()) / 0.05).unsqueeze(1)


def warp(x: Images, generator: Generator, *, stretch: float, shift: float, bend: float) -> Images:
    """x'(p) = x(A p + b + d(p)): A = I + `stretch` N(0, 1), b = `shift` N(0, 1), d a smooth field of deviation `bend`.

    Bilinear, coordinates in [-1, 1]; d is bicubic between 4 x 4 control points. Pixels outside repeat the border.
    """
    basis = _basis(x)  # (3 + 16, H W)
    c = torch.randn(len(x), 2, len(basis), generator=generator, dtype=x.dtype, device=x.device)
    sizes = torch.cat([c.new_full((n,), size) for n, size in ((2, stretch), (1, shift), (CELLS**2, bend))])
    c = c * sizes + F.pad(torch.eye(2, dtype=x.dtype, device=x.device), (0, len(basis) - 2))
    grid = (c.flatten(0, 1) @ basis).view(len(x), 2, *x.shape[2:]).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _basis(x: Images) -> Tensor:
    gx, gy = _grid(x)
    bumps = torch.eye(CELLS**2, dtype=x.dtype, device=x.device).view(-1, 1, CELLS, CELLS)
    fields = F.interpolate(bumps, size=list(x.shape[2:]), mode="bicubic", align_corners=True)
    return torch.cat([torch.stack([gx, gy, torch.ones_like(gx)]).flatten(1), fields.flatten(1)])


def _grid(x: Images) -> tuple[Tensor, Tensor]:
    """(x, y) of the pixels' middles in [-1, 1], (H, W) each."""
    height, width = x.shape[2:]
    ys, xs = ((2 * torch.arange(n, dtype=x.dtype, device=x.device) + 1) / n - 1 for n in (height, width))
    gy, gx = torch.meshgrid(ys, xs, indexing="ij")
    return gx, gy


def _background(x: Images) -> Tensor:
    """The median of each row's border, (B, C, 1, 1)."""
    border = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], dim=2)
    return border.median(2).values[:, :, None, None]


def _other(x: Tensor, generator: Generator) -> Tensor:
    """The rows in a random order."""
    return x[torch.randperm(len(x), generator=generator, device=x.device)]
