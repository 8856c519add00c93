"""Linear operators on images: masks, blurs, reductions in size.

    b = A x + s n,    n standard normal

In-painting, sharpening and enlarging are then one task: draw x from the model's law given the measurements b. An
operator is a frozen dataclass that maps images (B, *shape) to measurements (B, m). Its matrix A is computed by applying
it to the unit images, so it needs no other method; for large images it must be `Separable`, and no matrix is made.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.evaluate.corruptions import gaussian_blur


class Operator(Protocol):
    """A linear map, images (B, *shape) to (B, m), rows independent."""

    def __call__(self, x: Float[Tensor, "b *d"], /) -> Float[Tensor, "b m"]:
        """A x of each row."""
        ...


@dataclass(frozen=True)
class Pixels:
    """The pixels that `observed` marks, in order: A is a selection of rows of the identity."""

    observed: Bool[Tensor, " *d"]

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b m"]:
        """The observed pixels of each row."""
        return x.flatten(1)[:, self.observed.flatten()]


@dataclass(frozen=True, kw_only=True)
class Blur:
    """A Gaussian blur of standard deviation `width` pixels (`evaluate.corruptions.gaussian_blur`)."""

    width: float = 1.0

    def __post_init__(self):
        check.positive(width=self.width)
        if self.width > 100:
            raise UserError("must be at most 100 pixels", argument="width", value=self.width)

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """The blurred image, flat."""
        _image(x, "Blur")
        return gaussian_blur(x, self.width).flatten(1)

    def factors(self, height: int, width: int) -> tuple[Float[Tensor, "kv h"], Float[Tensor, "kh w"]]:
        """From the blurs of lines, in images that are as wide as the blur asks."""
        return self._lines(height, width), self._lines(width, height)

    def _lines(self, size: int, other: int) -> Float[Tensor, "n n"]:
        other = min(other, int(3 * self.width + 0.5) + 1)
        lines = torch.eye(size)[:, None, :, None].expand(size, 1, size, other)
        return gaussian_blur(lines, self.width)[:, 0, :, 0].T.contiguous()


@dataclass(frozen=True, kw_only=True)
class Downsample:
    """Means of squares of `factor` x `factor` pixels, which must divide both sides of the image."""

    factor: int = 2

    def __post_init__(self):
        check.count(factor=self.factor)

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """The small image, flat."""
        _, height, width = _image(x, "Downsample")
        if height % self.factor or width % self.factor:
            raise UserError(f"must divide {height} x {width} pixels", argument="factor", value=self.factor)
        return F.avg_pool2d(x, self.factor).flatten(1)

    def factors(self, height: int, width: int) -> tuple[Float[Tensor, "kv h"], Float[Tensor, "kh w"]]:
        """Means of `factor` pixels of a line."""
        mean = torch.full((1, self.factor), 1 / self.factor)
        return torch.kron(torch.eye(height // self.factor), mean), torch.kron(torch.eye(width // self.factor), mean)


@runtime_checkable
class Separable(Protocol):
    """An operator that acts alike on all channels of an image, and on columns and rows one after the other."""

    def factors(self, height: int, width: int) -> tuple[Float[Tensor, "kv h"], Float[Tensor, "kh w"]]:
        """A_v and A_h: A x = A_v x A_h' of each channel."""
        ...


def matrix(operator: Operator, shape: tuple[int, ...]) -> Float[Tensor, "m d"]:
    """A itself, from the images of the D unit vectors; UserError where the map is not linear."""
    size = torch.Size(shape).numel()
    columns = operator(torch.eye(size).reshape(size, *shape))
    found = operator(torch.cat([torch.zeros(1, size), torch.linspace(-1, 2, size)[None]]).reshape(2, *shape))
    wanted = torch.stack([torch.zeros_like(found[0]), torch.linspace(-1, 2, size) @ columns])
    if not torch.allclose(found, wanted, atol=1e-3):
        raise UserError("must be a linear map: A(x + y) = A x + A y", argument=type(operator).__name__)
    return columns.T.contiguous()


def _image(x: Tensor, name: str) -> tuple[int, int, int]:
    if x.ndim != 4:
        raise UserError(f"must act on images, and the model is of rows of {x[0].numel()} numbers", argument=name)
    return x.shape[1], x.shape[2], x.shape[3]
