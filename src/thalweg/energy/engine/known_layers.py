"""The written-out layers of torch's modules: which module has one, and which positions it takes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energy.engine.im2col import PatchConv2d
from thalweg.energy.engine.layers import (
    Activation,
    Affine,
    ByAutograd,
    ChannelAffine,
    Conv2d,
    FlatAffine,
    Flatten,
    Identity,
    Im2colConv2d,
    Layer,
    PixelMean,
    PixelSum,
    PixelSums,
    Residual,
    ResidualBlock,
    aten,
)
from thalweg.energy.engine.pointwise import is_pointwise, is_silu
from thalweg.energy.engine.pooling import AveragePool, AvgPool2x2, MaxPool


def _pair(value: Any) -> tuple[int, int]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * 2 if len(value) == 1 else value


def _conv(m: nn.Conv2d) -> Layer | None:
    if isinstance(m.padding, str) or m.padding_mode != "zeros":
        return None
    where = (_pair(m.stride), _pair(m.padding), _pair(m.dilation))
    if m.in_channels == 1:
        return Im2colConv2d(m.weight, m.bias, *where)
    turned = _channels_last(m.weight.flip(2, 3).transpose(0, 1)) if _turns(m) else None
    return Conv2d(_channels_last(m.weight), m.bias, *where, m.groups, turned)


def _turns(m: nn.Conv2d) -> bool:
    """Whether the gradient is a convolution too: stride 1, one group, no more padding than the window covers."""
    reach = [d * (k - 1) for d, k in zip(_pair(m.dilation), m.kernel_size, strict=True)]
    covered = all(p <= r for p, r in zip(_pair(m.padding), reach, strict=True))
    return m.weight.device.type == "cpu" and _pair(m.stride) == (1, 1) and m.groups == 1 and covered


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


def _max_pool(m: nn.MaxPool2d) -> Layer | None:
    return max_pool(m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> MaxPool | None:
    """The layer of torch's max pooling with these arguments; None where it gives indices too."""
    stride = stride if stride else kernel_size
    return None if return_indices else MaxPool((*map(_pair, (kernel_size, stride, padding, dilation)), ceil_mode))


def _batch_norm(m: nn.BatchNorm1d | nn.BatchNorm2d) -> Layer | None:
    if m.training or m.running_mean is None or m.running_var is None:
        return None
    scale = (m.running_var + m.eps).rsqrt() * (1 if m.weight is None else m.weight)
    return ChannelAffine(scale, (0 if m.bias is None else m.bias) - m.running_mean * scale)


def _leaky_relu(m: nn.LeakyReLU) -> Layer:
    slope = m.negative_slope
    return Activation(
        lambda x: F.leaky_relu(x, slope), lambda g, x: aten.leaky_relu_backward(g, x, slope, False), rises=slope >= 0
    )


SILU = Activation(F.silu, aten.silu_backward)
MAKERS: dict[type[nn.Module], Callable[[Any], Layer | None]] = {
    nn.Conv2d: _conv,
    PatchConv2d: _conv,
    nn.Linear: lambda m: Affine(m.weight, m.bias, m.weight.detach().t().contiguous()),
    nn.AvgPool2d: _pool,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: lambda m: Flatten() if (m.start_dim, m.end_dim) == (1, -1) else None,
    PixelSum: lambda m: PixelSums(),
    ResidualBlock: _residual,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AdaptiveAvgPool2d: lambda m: PixelMean() if _pair(m.output_size) == (1, 1) else None,
    nn.Identity: lambda m: Identity(),
    nn.Dropout: lambda m: Identity(),
    nn.Dropout2d: lambda m: Identity(),
    nn.SiLU: lambda m: SILU,
    nn.ReLU: lambda m: Activation(torch.relu, lambda g, y: aten.threshold_backward(g, y, 0), True, True),
    nn.Tanh: lambda m: Activation(torch.tanh, aten.tanh_backward, True),
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: lambda m: Activation(torch.sigmoid, aten.sigmoid_backward, True),
    nn.GELU: lambda m: Activation(
        lambda x: F.gelu(x, approximate=m.approximate),
        lambda g, x: aten.gelu_backward(g, x, approximate=m.approximate),
    ),
    nn.Softplus: lambda m: Activation(
        lambda x: F.softplus(x, m.beta, m.threshold),
        lambda g, x: aten.softplus_backward(g, x, m.beta, m.threshold),
    ),
}
PRODUCTS = (Affine, Conv2d, FlatAffine, Im2colConv2d)
IMAGES = (Conv2d, Im2colConv2d, AveragePool, AvgPool2x2, MaxPool, PixelMean, PixelSums)
FREE = (Identity, Flatten)  # their output has the memory of their input
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(m: nn.Module) -> bool:
    """Whether the module has hooks of its own."""
    return any(getattr(m, name) for name in HOOKS)


def is_plain(m: nn.Module) -> bool:
    """Whether a call of the module is its class's `forward` and nothing else: no hooks, no `forward` of its own."""
    return not has_hooks(m) and "forward" not in m.__dict__ and type(m).__call__ is nn.Module.__call__


def leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules that are called one after the other, plain Sequentials taken apart."""
    for m in modules:
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward and is_plain(m):
            yield from leaves(m)
        else:
            yield m


def layer_of(m: nn.Module, before: Sequence[Layer] = ()) -> Layer | None:
    """The layer that computes the same as the module in evaluation mode; None where there is none for certain.

    `before`: the layers that its input comes from. Only after one whose result nobody else sees may it work in place.

    A subclass counts as its base only if it keeps the base's `forward` (torch's parametrisations make such ones). A
    module with hooks has none, since they would not be called.
    """
    if not is_plain(m) or (getattr(m, "inplace", False) and all(isinstance(layer, FREE) for layer in before)):
        return None
    for kind, make in MAKERS.items():
        if isinstance(m, kind) and type(m).forward is kind.forward:
            own_conv = isinstance(m, nn.Conv2d) and type(m)._conv_forward is not nn.Conv2d._conv_forward
            return None if own_conv else make(m)
    if not is_pointwise(m):
        return None
    return SILU if is_silu(m) else ByAutograd(functools.partial(type(m).forward, m))


def layers_of(modules: Iterable[nn.Module]) -> list[Layer] | None:
    """The layers of modules that are called one after the other; None where a module has none."""
    layers: list[Layer] = []
    for m in leaves(modules):
        layer = layer_of(m, layers)
        if layer is None:
            return None
        layers.append(layer)
    return simplified(layers)


def simplified(layers: Sequence[Layer]) -> list[Layer]:
    """The same function with fewer operations and copies, without layers that do nothing.

    Activations that rise come after a max pooling, not before. Images are flattened as they lie. Batch normalisation
    becomes part of the product before it.
    """
    found: list[Layer] = []
    for layer in layers:
        last = found[-1] if found else None
        if isinstance(layer, MaxPool) and isinstance(last, Activation) and last.rises:
            found[-1:] = [layer, last]
        elif isinstance(layer, Affine) and isinstance(last, Flatten):
            found[-1] = FlatAffine(layer)
        elif isinstance(layer, ChannelAffine) and isinstance(last, Affine | Conv2d | Im2colConv2d):
            found[-1] = layer.after(last)
        elif not isinstance(layer, Identity):
            found.append(layer)
    return found


def has_products(layers: Sequence[Layer]) -> bool:
    """Whether there are convolutions or matrix products, which autocast would compute in bfloat16."""
    return any(isinstance(layer, PRODUCTS) for layer in _each(layers))


def _each(layers: Sequence[Layer]) -> Iterator[Layer]:
    for layer in layers:
        yield from _each([*layer.skip, *layer.body]) if isinstance(layer, Residual) else (layer,)


def reads_input(layers: Sequence[Layer]) -> bool:
    """Whether `backward` reads the numbers of the input, which must not change in between."""
    first = next((layer for layer in layers if not isinstance(layer, FREE)), None)
    if isinstance(first, Residual):
        return reads_input(first.skip) or reads_input(first.body)
    return isinstance(first, Activation) and not first.of_result


def takes(layers: Sequence[Layer], x: Tensor) -> bool:
    """Whether the layers take x: rows of vectors, or images that are contiguous or in channels_last."""
    if x.ndim != 4:
        return not any(isinstance(layer, IMAGES) for layer in _each(layers))
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return dense and (not isinstance(layers[0], Im2colConv2d) or x.shape[1] == 1)
