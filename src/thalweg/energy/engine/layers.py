"""Layers with the gradient in their input written out: what `energy.engine.fused` puts in the place of nn.Sequential's.

A chain needs dE/dx and nothing of the weights, so a layer here is two functions,

    y, kept = forward(x),    dE/dx = backward(dE/dy, kept),

without autograd between them. They are the same kernels that autograd calls, but for one: a convolution of a single
channel, at which oneDNN is five times slower than a matrix product over patches. Convolutions on the CPU have a copy of
their weight in channels_last, and so give images in that layout, which oneDNN takes without copying.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energy.engine.im2col import PatchConv2d

aten = torch.ops.aten


class Layer(Protocol):
    """y and what the way back needs, then the way back. `backward` leaves what was kept as it is."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]: ...

    def backward(self, g: Tensor, kept: Any) -> Tensor: ...


def forward_through(layers: Sequence[Layer], x: Tensor) -> tuple[Tensor, list[Any]]:
    """y of the layers one after the other, and what each kept."""
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
    """y = x W' + b; `across` is W' as a weight of its own: a product with few columns is fast in one order only."""

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

    y (N, O) = P' V + b with the patches P (K, N), N = B Ho Wo, and V = W (O, K)'; back, V dE/dy' (K, N) is added up
    where the patches came from. Measured, 1 -> 16 channels, 3 x 3, 64 images of 28 x 28, one thread: 0.6 and 0.9 ms,
    by oneDNN 2.5 and 2.4.
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
            return F.conv2d(x, *self), ()  # an image that does not fit, and torch says how
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
        """The parts (kh, kw, B, Ho, Wo) of dE/dx added up where they belong, `size` the padded image's."""
        (sh, sw), (dh, dw), (ph, pw), (height, width) = self.stride, self.dilation, self.padding, size
        kh, kw, rows, ho, wo = parts.shape
        x = parts.new_zeros(rows, height, width)
        for i in range(kh):
            for j in range(kw):
                top, left = i * dh, j * dw
                x[:, top : top + (ho - 1) * sh + 1 : sh, left : left + (wo - 1) * sw + 1 : sw] += parts[i, j]
        return x[:, ph : height - ph, pw : width - pw].unsqueeze(1).contiguous()


class Col2imConv2d(Im2colConv2d):
    """A convolution of one channel in the usual layout, by the library; the way back by `col2im`.

    Measured, 1 -> 16 channels, 3 x 3, 64 images of 28 x 28, one thread: back in 0.65 ms, by oneDNN in 3.0.
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
    """y = f(x); the way back reads x, or y where that is enough (`of_result`)."""

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
    """Means over 2 x 2 pixels, for images in channels_last: each pass goes through whole rows of memory.

    Measured, 64 images of 16 x 28 x 28: 0.39 and 0.33 ms, by the library's pooling 0.92 and 0.74. An odd side is the
    library's business.
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
    """What does nothing in evaluation mode."""

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


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv(m: nn.Conv2d) -> Layer | None:
    if isinstance(m.padding, str) or m.padding_mode != "zeros":
        return None
    where = (_pair(m.stride), _pair(m.padding), _pair(m.dilation))
    if m.in_channels == 1:
        return Im2colConv2d(m.weight, m.bias, *where)
    return Conv2d(_channels_last(m.weight), m.bias, *where, m.groups)


def _channels_last(weight: Tensor) -> Tensor:
    """The weight in channels_last: on the CPU only, no other device was measured."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.device.type == "cpu" else weight


def _residual(m: ResidualBlock) -> Layer | None:
    skip, body = layers_of([m.skip]), layers_of([m.residual])
    return None if skip is None or body is None else Residual(skip, body)


def _pool(m: nn.AvgPool2d) -> Layer:
    stride = _pair(m.kernel_size if m.stride is None else m.stride)
    more = (m.ceil_mode, m.count_include_pad, m.divisor_override)
    window = (_pair(m.kernel_size), stride, _pair(m.padding), *more)
    two_by_two = window[:3] == ((2, 2), (2, 2), (0, 0)) and m.divisor_override is None
    return AvgPool2x2(AveragePool(window)) if two_by_two else AveragePool(window)


MAKERS: dict[type[nn.Module], Callable[[Any], Layer | None]] = {
    nn.Conv2d: _conv,
    PatchConv2d: _conv,
    nn.Linear: lambda m: Affine(m.weight, m.bias, m.weight.detach().t().contiguous()),
    nn.AvgPool2d: _pool,
    nn.Flatten: lambda m: Flatten() if (m.start_dim, m.end_dim) == (1, -1) else None,
    PixelSum: lambda m: PixelSums(),
    ResidualBlock: _residual,
    nn.Identity: lambda m: Identity(),
    nn.Dropout: lambda m: Identity(),
    nn.SiLU: lambda m: Activation(F.silu, aten.silu_backward),
    nn.ReLU: lambda m: Activation(torch.relu, lambda g, y: aten.threshold_backward(g, y, 0), True),
    nn.Tanh: lambda m: Activation(torch.tanh, aten.tanh_backward, True),
    nn.LeakyReLU: lambda m: Activation(
        lambda x: F.leaky_relu(x, m.negative_slope),
        lambda g, x: aten.leaky_relu_backward(g, x, m.negative_slope, False),
    ),
    nn.GELU: lambda m: Activation(
        lambda x: F.gelu(x, approximate=m.approximate),
        lambda g, x: aten.gelu_backward(g, x, approximate=m.approximate),
    ),
    nn.Softplus: lambda m: Activation(
        lambda x: F.softplus(x, m.beta, m.threshold),
        lambda g, x: aten.softplus_backward(g, x, m.beta, m.threshold),
    ),
}
IMAGES = (Conv2d, Im2colConv2d, AveragePool, AvgPool2x2)
FREE = (Identity, Flatten)  # what gives back the memory that it is given
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(m: nn.Module) -> bool:
    """Whether a call of the module is its class's `forward` and nothing else: no hooks, no `forward` of its own."""
    hooked = any(getattr(m, name) for name in HOOKS)
    return not hooked and "forward" not in m.__dict__ and type(m).__call__ is nn.Module.__call__


def leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules that are called one after the other, plain Sequentials taken apart."""
    for m in modules:
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward and is_plain(m):
            yield from leaves(m)
        else:
            yield m


def layer_of(m: nn.Module) -> Layer | None:
    """The layer that computes what the module does in evaluation mode; None where that is not known for certain.

    A subclass counts as its base only if it keeps the base's `forward` (torch's parametrisations make such ones), and a
    module with hooks does not count: they would not be called.
    """
    if not is_plain(m) or getattr(m, "inplace", False):
        return None
    for kind, make in MAKERS.items():
        if isinstance(m, kind) and type(m).forward is kind.forward:
            own_conv = isinstance(m, nn.Conv2d) and type(m)._conv_forward is not nn.Conv2d._conv_forward
            return None if own_conv else make(m)
    return None


def layers_of(modules: Iterable[nn.Module]) -> list[Layer] | None:
    """The layers of modules that are called one after the other; None where one is not known."""
    layers = [layer_of(m) for m in leaves(modules)]
    return None if None in layers else [layer for layer in layers if layer is not None]


def _each(layers: Sequence[Layer]) -> Iterator[Layer]:
    for layer in layers:
        yield from _each([*layer.skip, *layer.body]) if isinstance(layer, Residual) else (layer,)


def reads_input(layers: Sequence[Layer]) -> bool:
    """Whether the way back reads the numbers of the input, which nobody may change in between."""
    first = next((layer for layer in layers if not isinstance(layer, FREE)), None)
    if isinstance(first, Residual):
        return reads_input(first.skip) or reads_input(first.body)
    return isinstance(first, Activation) and not first.of_result


def takes(layers: Sequence[Layer], x: Tensor) -> bool:
    """Whether x is what the layers are written for: rows of vectors or images, laid out one way or the other.

    The modules themselves take more, a single image for instance, or know what to say.
    """
    if x.ndim != 4:
        return not any(isinstance(layer, IMAGES) for layer in _each(layers))
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return dense and (not isinstance(layers[0], Im2colConv2d) or x.shape[1] == 1)
