"""Between the units of the data and those of a model: samples decoded, and where chains start."""

import torch
from torch import Generator, Tensor

from thalweg.data.float32_check import Float32Transform


def decoded(kind: str, transform: Float32Transform, z: Tensor) -> Tensor:
    """Model units to data units; images are clamped to [0, 1]."""
    x = transform.inverse(z)
    return x.clamp(0, 1) if kind == "image" else x


def initial_positions(kind: str, transform: Float32Transform, size: tuple[int, ...], draws: Generator) -> Tensor:
    """Where chains of an energy without noise levels start, of a size, in model units, on the generator's device.

    Images: pixels uniform in [0, 1]. Rows: standard normal in model units.
    """
    if kind == "image":
        return transform.forward(torch.rand(size, generator=draws, dtype=torch.float32, device=draws.device))
    return torch.randn(size, generator=draws, dtype=torch.float32, device=draws.device)
