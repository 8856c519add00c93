"""Layers with the gradient in their input written out, for `energy.engine.fused`.

A chain needs dE/dx and no gradient of the weights, so a layer here is two functions,

    y, kept = forward(x),    dE/dx = backward(dE/dy, kept),

without autograd. They call the kernels that autograd calls, except for convolutions of a single channel, for which
oneDNN is five times slower than a matrix product over patches. Convolutions on the CPU have a copy of their weight in
channels_last, and so give images in that layout, which oneDNN takes without copying.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten


class Layer(Protocol):
    """`forward` gives y and the data for `backward`, which does not change them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]: ...

    def backward(self, g: Tensor, kept: Any) -> Tensor: ...


def forward_through(layers: Sequence[Layer], x: Tensor) -> tuple[Tensor, list[Any]]:
    """y of the layers one after the other, and the data that each keeps for `backward`."""
    kept = []
    for layer in layers:
        x, own = layer.forward(x)
        kept.append(own)
    return x, kept


def backward_through(layers: Sequence[Layer], g: Tensor, kept: Sequence[Any]) -> Tensor:
    """dE/dx from dE/dy."""
    for layer, own in zip(reversed(layers), reversed(kept), strict=True):
        g = layer.backward(g, own)
    return g


class Affine(NamedTuple):
    """y = x W' + b; `across` is a copy of W', since products with few columns are fast in one memory order only."""

    weight: Tensor
    bias: Tensor | None
    across: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return F.linear(x, self.weight, self.bias), None

    def backward(self, g: Tensor, kept: None) -> Tensor:
        return F.linear(g, self.across)


class Conv2d(NamedTuple):
    """y = x * W + b by the library's kernels; W in channels_last gives y in channels_last."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.conv2d(x, *self), x

    def backward(self, g: Tensor, kept: Tensor) -> Tensor:
        weight, _, stride, padding, dilation, groups = self
        shape = (stride, padding, dilation, False, (0, 0), groups)
        return aten.convolution_backward(g, kept, weight, None, *shape, (True, False, False))[0]


class Im2colConv2d(NamedTuple):
    """A convolution of one channel as a matrix product over patches, K = kh kw numbers each.

    y (N, O) = P' V + b with the patches P (K, N), N = B Ho Wo, and V = W (O, K)'. `backward` adds V dE/dy' (K, N) to
    the pixels of the patches. Measured, 1 -> 16 channels, 3 x 3, 64 images of 28 x 28, one thread: 0.6 and 0.9 ms, by
    oneDNN 2.5 and 2.4.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        (kh, kw), (sh, sw), (dh, dw) = self.weight.shape[2:], self.stride, self.dilation
        (ph, pw), (rows, channels, height, width) = self.padding, x.shape
        height, width = height + 2 * ph, width + 2 * pw
        out = (rows, (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1)
        if channels != 1 or min(out[1:]) < 1 or x.dtype != self.weight.dtype:
            return F.conv2d(x, *self), ()  # raises the error of an image that does not fit
        x = F.pad(x.squeeze(1), (pw, pw, ph, ph))
        b, h, w = x.stride()
        patches = x.as_strided((kh, kw, *out), (h * dh, w * dw, b, h * sh, w * sw)).reshape(kh * kw, -1).t()
        v = self.weight.flatten(1).t()
        y = patches @ v if self.bias is None else torch.addmm(self.bias, patches, v)
        return y.view(*out, len(self.weight)).permute(0, 3, 1, 2), (height, width)

    def backward(self, g: Tensor, kept: tuple[int, int]) -> Tensor:
        rows, channels, ho, wo = g.shape
        parts = self.weight.flatten(1).t() @ g.permute(0, 2, 3, 1).reshape(-1, channels).t()
        return self.col2im(parts.view(*self.weight.shape[2:], rows, ho, wo), kept)

    def col2im(self, parts: Tensor, size: tuple[int, int]) -> Tensor:
        """dE/dx as the sum of its parts (kh, kw, B, Ho, Wo); `size` is that of the padded image."""
        (sh, sw), (dh, dw), (ph, pw), (height, width) = self.stride, self.dilation, self.padding, size
        kh, kw, rows, ho, wo = parts.shape
        x = parts.new_zeros(rows, height, width)
        for i in range(kh):
            for j in range(kw):
                top, left = i * dh, j * dw
                x[:, top : top + (ho - 1) * sh + 1 : sh, left : left + (wo - 1) * sw + 1 : sw] += parts[i, j]
        return x[:, ph : height - ph, pw : width - pw].unsqueeze(1).contiguous()


class Col2imConv2d(Im2colConv2d):
    """A convolution of one channel in the contiguous layout by the library, with `backward` by `col2im`.

    Measured, 1 -> 16 channels, 3 x 3, 64 images of 28 x 28, one thread: backward in 0.65 ms, by oneDNN in 3.0.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        ph, pw = self.padding
        return F.conv2d(x, *self), (x.shape[2] + 2 * ph, x.shape[3] + 2 * pw)

    def backward(self, g: Tensor, kept: tuple[int, int]) -> Tensor:
        rows, channels, ho, wo = g.shape
        v = self.weight.flatten(1).t().expand(rows, -1, -1)
        parts = torch.bmm(v, g.reshape(rows, channels, ho * wo)).view(rows, *self.weight.shape[2:], ho, wo)
        return self.col2im(parts.permute(1, 2, 0, 3, 4), kept)


class Activation(NamedTuple):
    """y = f(x); `backward` reads x, or y (`of_result`)."""

    f: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    of_result: bool = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.f(x)
        return y, y if self.of_result else x

    def backward(self, g: Tensor, kept: Tensor) -> Tensor:
        return self.back(g, kept)


class AveragePool(NamedTuple):
    """Means over windows."""

    window: tuple[Any, ...]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return aten.avg_pool2d(x, *self.window), x

    def backward(self, g: Tensor, kept: Tensor) -> Tensor:
        return aten.avg_pool2d_backward(g, kept, *self.window)


class AvgPool2x2(NamedTuple):
    """Means over 2 x 2 pixels, for images in channels_last; odd sides are pooled by the library.

    Measured, 64 images of 16 x 28 x 28: 0.39 and 0.33 ms, by the library's pooling 0.92 and 0.74.
    """

    general: AveragePool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        rows, channels, height, width = x.shape
        if height % 2 or width % 2 or not x.is_contiguous(memory_format=torch.channels_last):
            return self.general.forward(x)
        lines = x.permute(0, 2, 3, 1).reshape(rows, height // 2, 2, width * channels)
        pairs = (lines[:, :, 0] + lines[:, :, 1]).view(rows, height // 2, width // 2, 2, channels)
        return (pairs[..., 0, :] + pairs[..., 1, :]).mul_(0.25).permute(0, 3, 1, 2), None

    def backward(self, g: Tensor, kept: Tensor | None) -> Tensor:
        if kept is not None:
            return self.general.backward(g, kept)
        rows, channels, height, width = g.shape
        q = 0.25 * g.permute(0, 2, 3, 1)
        line = torch.stack([q, q], 3).view(rows, height, 1, 2 * width * channels)
        return torch.cat([line, line], 2).view(rows, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class PixelSum(nn.Module):
    """(B, C, H, W) to the sums over the pixels, (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))


class PixelSums(NamedTuple):
    """`PixelSum`."""

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        return x.sum((2, 3)), x.shape

    def backward(self, g: Tensor, kept: torch.Size) -> Tensor:
        return g[:, :, None, None].expand(kept)


class Flatten(NamedTuple):
    """Rows as vectors, in the order of a tensor's logical dimensions."""

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        return x.flatten(1), x.shape

    def backward(self, g: Tensor, kept: torch.Size) -> Tensor:
        return g.reshape(kept)


class Identity(NamedTuple):
    """y = x, as modules without effect in evaluation mode."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def backward(self, g: Tensor, kept: None) -> Tensor:
        return g


class ResidualBlock(nn.Module):
    """skip(x) + residual(x)."""

    def __init__(self, residual: nn.Sequential, skip: nn.Module):
        super().__init__()
        self.residual, self.skip = residual, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.residual(x)


class Residual(NamedTuple):
    """`ResidualBlock`, both branches as layers."""

    skip: Sequence[Layer]
    body: Sequence[Layer]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[list[Any], list[Any]]]:
        (a, kept_a), (b, kept_b) = forward_through(self.skip, x), forward_through(self.body, x)
        return a + b, (kept_a, kept_b)

    def backward(self, g: Tensor, kept: tuple[list[Any], list[Any]]) -> Tensor:
        return backward_through(self.skip, g, kept[0]) + backward_through(self.body, g, kept[1])
