"""Positions cut into tokens: groups of numbers of a row, steps of a series, patches of an image."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.networks.encoder import rotation
from thalweg.energy.shape import check_shape, wrong_rows

NUM_FREQUENCIES = 8
BASES = (10_000.0, 100.0)  # of wavelengths along a line and in a plane


def default_patch(shape: tuple[int, ...]) -> int:
    """1 number of a row or step of a series, 4 pixels or what a smaller image has."""
    return min(4, max(shape[1:])) if len(shape) == 3 else 1


class Patches:
    """Rows (D,), series (L, C) or images (C, H, W) as T tokens of N numbers, and back.

    What is left over at the end is filled with zeros. A series may have any length and an image any size; a row has D
    numbers, since each of its columns has a meaning of its own.

    Args:
        shape: Of one position.
        patch: Numbers of a row, steps of a series, or pixels of a patch's side that make one token.
            Not more than there are.
    """

    def __init__(self, shape: tuple[int, ...], patch: int):
        check.count(patch=patch)
        self.shape, self.patch, self.axes = check_shape(shape), patch, 1
        match self.shape:
            case (_,):
                channels = 1
            case (_, channels):
                pass
            case (channels, _, _):
                self.axes = 2
            case _:
                condition = "must be (D,) for rows, (L, C) for series or tokens, or (C, H, W) for images"
                raise UserError(condition, argument="shape", value=shape)
        if patch > max(self.lengths):
            size = " x ".join(map(str, self.lengths))
            condition = f"must be {max(self.lengths)} at most, as there are no more along an axis of {size}"
            raise UserError(condition, argument="patch", value=patch)
        self.numbers = channels * patch**self.axes

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the axes that are cut: (D,), (L,) or (H, W)."""
        return self.shape[1:] if self.axes == 2 else self.shape[:1]

    @property
    def base(self) -> float:
        """Of the wavelengths of positions (`energy.networks.encoder.Encoder`)."""
        return BASES[self.axes - 1]

    def check(self, x: Tensor) -> None:
        """UserError unless x is a batch of such positions."""
        fixed = {1: slice(1, None), 2: slice(2, None), 3: slice(1, 2)}[len(self.shape)]
        if x.ndim != len(self.shape) + 1 or x.shape[fixed] != ((None, *self.shape)[fixed]) or 0 in x.shape[1:]:
            raise wrong_rows(x, self.shape)

    def cut(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b t n"]:
        """The tokens; images row by row."""
        patch = self.patch
        if x.ndim == 4:
            image = _padded(x, (0, -x.shape[3] % patch, 0, -x.shape[2] % patch))
            return F.pixel_unshuffle(image, patch).flatten(2).transpose(1, 2)
        series = x[:, :, None] if x.ndim == 2 else x
        series = _padded(series, (0, 0, 0, -series.shape[1] % patch))
        return series.unflatten(1, (-1, patch)).flatten(2) if patch > 1 else series

    def join(self, tokens: Float[Tensor, "b t n"], size: torch.Size) -> Float[Tensor, "b *d"]:
        """Positions of the size (B, *) from their tokens: the inverse of `cut`, for any number of channels."""
        if len(size) == 4:
            height, width = -(-size[2] // self.patch), -(-size[3] // self.patch)
            grid = tokens.transpose(1, 2).unflatten(2, (height, width))
            return F.pixel_shuffle(grid, self.patch)[..., : size[2], : size[3]]
        series = tokens.unflatten(2, (self.patch, -1)).flatten(1, 2)[:, : size[1]]
        return series.squeeze(2) if len(size) == 2 else series

    def positions(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "t p"]:
        """Where the tokens are, 0, 1, … along each axis, in float32 or x's higher precision."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        sizes = x.shape[2:] if x.ndim == 4 else x.shape[1:2]
        steps = [torch.arange(-(-size // self.patch), device=x.device, dtype=dtype) for size in sizes]
        return torch.stack([grid.flatten() for grid in torch.meshgrid(*steps, indexing="ij")], dim=1)


class Embedding(nn.Module):
    """W x + V p: tokens of N numbers and sines and cosines of their positions, to (B, T, width)."""

    def __init__(self, patches: Patches, numbers: int, width: int):
        super().__init__()
        self.dim, self.base = 2 * patches.axes * NUM_FREQUENCIES, patches.base
        self.content = nn.Linear(numbers, width, bias=False)
        self.place = nn.Linear(self.dim, width)

    def forward(self, tokens: Float[Tensor, "b t n"], positions: Float[Tensor, "t p"]) -> Float[Tensor, "b t w"]:
        features = torch.cat(rotation(positions, self.dim, self.base), dim=1)
        return self.content(tokens) + self.place(features.to(self.place.weight.dtype))


def _padded(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    return F.pad(x, padding) if any(padding) else x
