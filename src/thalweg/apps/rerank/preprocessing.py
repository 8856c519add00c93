"""Views: what the networks of a likelihood ratio are shown of images, to hide what all of a generator's draws share.

A grey background or speckle on every draw separates the two laws at once. The ratio then ranks by how much of it there
is, whatever the shapes are. "quantile_match" removes it: one increasing function a channel maps the values of the
generator's pixels to those of the data (quantile matching, the optimal transport in one dimension). A fault that only
some draws have stays visible, since the function is the same for all. "binarize" is for writing and drawings: both
sides pass a 3 x 3 blur and a soft threshold, sigmoid(10 (x - 0.4)). Rows (N, D) are never altered.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

View = Literal["pixels", "quantile_match", "binarize"]
LEVELS = 256  # values from 0 to 1 at which a quantile map is stored
ROWS = 2000  # as many images tell their quantiles well
GROUND, GREYS = 0.5, 0.65  # of writing: the share that is near-black is larger, the share of greys in the rest smaller


def identity(channels: int) -> Float[Tensor, "c levels"]:
    """The quantile map that changes nothing."""
    return torch.linspace(0, 1, LEVELS).repeat(channels, 1)


def quantile_map(generated: Float[Tensor, "n c h w"], real: Float[Tensor, "m c h w"]) -> Float[Tensor, "c levels"]:
    """T at LEVELS values from 0 to 1, a row a channel: F_real^-1(F_generated(v)) from the first `ROWS` images of each.

    Increasing. Values that many pixels share, as black is, go to the mean of all that the data have at their ranks.
    """
    return torch.stack(
        [
            torch.from_numpy(_quantile_map(a.numpy(), b.numpy()))
            for a, b in zip(generated[:ROWS].cpu().unbind(1), real[:ROWS].cpu().unbind(1), strict=True)
        ]
    ).to(generated.device)


def _quantile_map(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    at = (np.arange(4 * LEVELS) + 0.5) / (4 * LEVELS)
    values, group = np.unique(np.quantile(generated, at), return_inverse=True)
    means = np.bincount(group, np.quantile(real, at)) / np.bincount(group)
    return np.interp(np.linspace(0, 1, LEVELS), values, means).astype(np.float32)


def mapped(x: Float[Tensor, "b c h w"], table: Float[Tensor, "c levels"]) -> Float[Tensor, "b c h w"]:
    """T(x), linear between the table's values; x in [0, 1]."""
    position = x.clamp(0, 1) * (LEVELS - 1)
    low = position.detach().floor().clamp(max=LEVELS - 2)
    index = low.long() + LEVELS * torch.arange(x.shape[1], device=x.device)[:, None, None]
    below, above = table.flatten()[index], table.flatten()[index + 1]
    return torch.lerp(below, above, position - low)


def binarized(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """sigmoid(10 (blur(x) - 0.4)): strokes without their ground."""
    return torch.sigmoid(10 * (F.avg_pool2d(x, 3, 1, 1) - 0.4))


def is_writing(real: Tensor) -> bool:
    """Whether the data are white strokes on near-black: most values below 0.1, and of the rest not too many below 0.9.

    Of the digits half of the rest are grey, of Fashion-MNIST, which is photographs on black, 88 %.
    """
    if real.ndim != 4:
        return False
    dark, light = float((real < 0.1).float().mean()), float((real > 0.9).float().mean())
    return dark > GROUND and 1 - dark - light < GREYS * (1 - dark)
