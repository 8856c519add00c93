"""Layers with the gradient in their input written out, for `energy.engine.fused`.

A chain needs dE/dx and no gradient of the weights, so a layer here is two functions,

    y, kept = forward(x),    dE/dx = backward(dE/dy, kept),

without autograd. They call the kernels that autograd calls, except for convolutions of a single channel, for which
oneDNN is five times slower than a matrix product over patches. Convolutions on the CPU have a copy of their weight in
channels_last, and so give images in that layout, which oneDNN takes without copying.

Layers in bfloat16 (`in_bf16`) have copies of their weights in it, made once a chain, and take and give bfloat16. dE/dx
of an image of one channel is summed in float32.
"""

import functools
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


def in_bf16(layers: Sequence[Layer]) -> list[Layer]:
    """The same layers with weights in bfloat16."""
    return [_lowered(layer) for layer in layers]


def _lowered(layer: Any) -> Layer:
    if isinstance(layer, Residual):
        return Residual(in_bf16(layer.skip), in_bf16(layer.body))
    if isinstance(layer, Im2colConv2d):
        one = torch.empty(layer.weight.shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        layer = layer._replace(weight=one.copy_(layer.weight))  # by whose strides oneDNN gives channels_last
    if isinstance(layer, ChannelAffine):
        return layer
    if isinstance(layer, FlatAffine):
        return FlatAffine(_lowered(layer.affine))  # pyright: ignore[reportArgumentType]
    weights = {name: value.bfloat16() for name, value in layer._asdict().items() if isinstance(value, Tensor)}
    return layer._replace(**weights)


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
    """y = x * W + b by the library's kernels; W in channels_last gives y in channels_last.

    `turned`: for stride 1, W rotated by half a turn with its channels exchanged, by which `backward` is a convolution
    too. The library's own takes 3 to 8 % longer.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    turned: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return F.conv2d(x, *self[:6]), x if self.turned is None else None

    def backward(self, g: Tensor, kept: Tensor | None) -> Tensor:
        weight, _, stride, padding, dilation, groups, turned = self
        if turned is not None:
            rest = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
            return F.conv2d(g, turned, None, 1, rest, dilation)
        shape = (stride, padding, dilation, False, (0, 0), groups)
        return aten.convolution_backward(g, kept, weight, None, *shape, (True, False, False))[0]


class Im2colConv2d(NamedTuple):
    """A convolution of one channel as a matrix product over patches, K = kh kw numbers each.

    y (N, O) = P' V + b with the patches P (K, N), N = B Ho Wo, and V = W (O, K)'. `backward` adds V dE/dy' (K, N) to
    the pixels of the patches. Measured, 1 -> 16 channels, 3 x 3, 64 images of 28 x 28, one thread: 0.6 and 0.9 ms, by
    oneDNN 2.5 and 2.4; in bfloat16 with AVX-512 forward by oneDNN 0.42, else 0.62.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        (kh, kw), (sh, sw), (dh, dw) = self.weight.shape[2:], self.stride, self.dilation
        (ph, pw), (rows, channels, height, width) = self.padding, x.shape
        out = (rows, (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1)
        if channels != 1 or min(out[1:]) < 1 or x.dtype != self.weight.dtype or x.dtype == torch.bfloat16:
            return F.conv2d(x, *self), (height, width)  # or the error of an image that does not fit
        x = F.pad(x.squeeze(1), (pw, pw, ph, ph))
        b, h, w = x.stride()
        patches = x.as_strided((kh, kw, *out), (h * dh, w * dw, b, h * sh, w * sw)).reshape(kh * kw, -1).t()
        v = self.weight.flatten(1).t()
        shape = (rows, len(self.weight), *out[1:])  # y is no view: a node of a graph may not give one
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        lines = y.permute(0, 2, 3, 1).view(-1, len(self.weight))
        _ = torch.mm(patches, v, out=lines) if self.bias is None else torch.addmm(self.bias, patches, v, out=lines)
        return y, (height, width)

    def backward(self, g: Tensor, kept: tuple[int, int]) -> Tensor:
        rows, channels, ho, wo = g.shape
        parts = self.weight.flatten(1).t() @ g.permute(0, 2, 3, 1).reshape(-1, channels).t()
        return self.col2im(parts.view(*self.weight.shape[2:], rows, ho, wo), kept)

    def col2im(self, parts: Tensor, size: tuple[int, int]) -> Tensor:
        """dE/dx (B, 1, *size) as the sum of its parts (kh, kw, B, Ho, Wo)."""
        parts, rows = parts.float() if parts.dtype == torch.bfloat16 else parts, parts.shape[2]
        x, (i_step, j_step, b_step, *steps) = parts.new_zeros(rows, *size), parts.stride()
        strides = (size[0] * size[1], self.stride[0] * size[1], self.stride[1])
        sides = zip(self.weight.shape[2:], self.dilation, self.padding, self.stride, parts.shape[3:], size, strict=True)
        down, across = (_taps(*side) for side in sides)
        for i, (first_row, row, height) in enumerate(down):  # as_strided takes half the time of slices
            for j, (first_column, column, width) in enumerate(across):
                start = i * i_step + j * j_step + first_row * steps[0] + first_column * steps[1]
                part = parts.as_strided((rows, height, width), (b_step, *steps), parts.storage_offset() + start)
                x.as_strided((rows, height, width), strides, row * size[1] + column).add_(part)
        return x.unsqueeze(1)


@functools.cache
def _taps(kernel: int, dilation: int, padding: int, stride: int, count: int, size: int) -> list[tuple[int, int, int]]:
    """For each tap of a window along one side: the first of the `count` windows whose pixel is inside, that pixel, and
    the number of such windows.
    """
    found = []
    for offset in range(-padding, kernel * dilation - padding, dilation):
        first, last = max(0, -(offset // stride)), min(count - 1, (size - 1 - offset) // stride)
        inside = last >= first
        found.append((first, first * stride + offset, last - first + 1) if inside else (0, 0, 0))
    return found


class Activation(NamedTuple):
    """y = f(x); `backward` reads x, or y (`of_result`). `rises`: f(max(a, b)) = max(f(a), f(b)), bit for bit."""

    f: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    of_result: bool = False
    rises: bool = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.f(x)
        return y, y if self.of_result else x

    def backward(self, g: Tensor, kept: Tensor) -> Tensor:
        return self.back(g, kept)


class ByAutograd(NamedTuple):
    """y = f(x) of an f that takes each number for itself, its gradient by autograd of f alone."""

    f: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            y = self.f(x)
        return y.detach(), (x, y)

    def backward(self, g: Tensor, kept: tuple[Tensor, Tensor]) -> Tensor:
        x, y = kept
        return torch.autograd.grad(y, x, g, retain_graph=True)[0]


class ChannelAffine(NamedTuple):
    """y = s x + b with a number s and b for each channel: batch normalisation in evaluation mode.

    In bfloat16 s and b keep their type, since s x and b may nearly cancel.
    """

    scale: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        scale, shift = (v.view(-1, *[1] * (x.ndim - 2)) for v in self)
        return torch.addcmul(shift, x, scale).to(x.dtype), None

    def backward(self, g: Tensor, kept: None) -> Tensor:
        return (g * self.scale.view(-1, *[1] * (g.ndim - 2))).to(g.dtype)

    def after(self, product: Any) -> Layer:
        """This after a convolution or matrix product as one such product."""
        scale, rows = self.scale, self.scale.view(-1, *[1] * (product.weight.ndim - 1))
        shift = self.shift if product.bias is None else torch.addcmul(self.shift, product.bias, scale)
        other = {"across": lambda w: w * scale, "turned": lambda w: None if w is None else w * scale.view(1, -1, 1, 1)}
        more = {name: change(getattr(product, name)) for name, change in other.items() if name in product._fields}
        return product._replace(weight=product.weight * rows, bias=shift, **more)


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


class PixelMean(NamedTuple):
    """Means over the pixels, (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        return x.mean((2, 3), keepdim=True), x.shape

    def backward(self, g: Tensor, kept: torch.Size) -> Tensor:
        return (g / (kept[2] * kept[3])).expand(kept)


class Flatten(NamedTuple):
    """Rows as vectors, in the order of a tensor's logical dimensions."""

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        return x.flatten(1), x.shape

    def backward(self, g: Tensor, kept: torch.Size) -> Tensor:
        return g.reshape(kept)


class FlatAffine:
    """`Flatten` and `Affine` of images in channels_last as they lie in memory, by a weight whose columns are in that
    order; others are flattened first. Measured, 64 images of 64 x 7 x 7: 0.7 ms less a gradient than with the copies.
    """

    def __init__(self, affine: Affine):
        self.affine = affine
        self._of: dict[tuple[int, ...], Affine] = {}  # by the shape of an image

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[torch.Size, bool]]:
        lies = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        affine, rows = (self._for(x.shape[1:]), x.permute(0, 2, 3, 1)) if lies else (self.affine, x)
        return affine.forward(rows.flatten(1))[0], (x.shape, lies)

    def backward(self, g: Tensor, kept: tuple[torch.Size, bool]) -> Tensor:
        shape, lies = kept
        if not lies:
            return self.affine.backward(g, None).reshape(shape)
        rows, channels, height, width = shape
        return self._for(shape[1:]).backward(g, None).view(rows, height, width, channels).permute(0, 3, 1, 2)

    def _for(self, image: tuple[int, ...]) -> Affine:
        if image not in self._of:
            weight, bias, _ = self.affine
            weight = weight.unflatten(1, image).permute(0, 2, 3, 1).flatten(1)
            self._of[image] = Affine(weight, bias, weight.t().contiguous())
        return self._of[image]


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
