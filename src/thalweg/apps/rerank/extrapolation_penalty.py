"""A penalty for images far from all rows of both sides, where a likelihood ratio is not known.

A blank image has no probability under the data's law nor under the generator's, so that its ratio is arbitrary. Three
figures of an image are compared with their ranges over both sides: its mean, its deviation, and its mean step from
pixel to pixel. An image beyond a range gets a penalty that grows with the distance. Within the ranges it is exactly
zero. Rows (N, D) have no such figures in common.
"""

import torch
from jaxtyping import Float
from torch import Tensor

MARGIN = 0.2  # beyond the range, in its widths, that costs nothing
PRICE = 10.0  # of one width, in ranges of the energies of the rows that were fitted
NARROW = 0.02  # the least width, where all images agree
FAR = 1e3  # no limit


def unlimited(is_image: bool) -> Float[Tensor, "2 f"]:
    """Limits that nothing goes beyond."""
    return torch.tensor([[-FAR], [FAR]], dtype=torch.float32).repeat(1, 3 if is_image else 0)


def figures(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3"]:
    """Mean, deviation and mean absolute step to the neighbours of each image."""
    over = (1, 2, 3)
    deviation = (x.var(over, unbiased=False) + 1e-12).sqrt()  # whose slope is finite at a blank
    steps = sum(x.diff(dim=axis).abs().mean(over) for axis in (2, 3))
    return torch.stack([x.mean(over), deviation, steps], 1)  # pyright: ignore[reportArgumentType]


def limits(real: Float[Tensor, "n c h w"], generated: Float[Tensor, "m c h w"]) -> Float[Tensor, "2 3"]:
    """The least and the largest of each figure on both sides."""
    low, high = torch.cat([figures(real), figures(generated)]).aminmax(dim=0)
    return torch.stack([low, high])


def beyond(x: Float[Tensor, "b c h w"], limits: Float[Tensor, "2 3"]) -> Float[Tensor, " b"]:
    """The widths by which each image is beyond limits and margin, summed over the figures; 0 within."""
    low, high = limits
    width = (high - low).clamp(min=NARROW)
    found = figures(x)
    over = torch.maximum(low - found, found - high) / width - MARGIN
    return over.clamp(min=0).sum(1)
