"""Networks evaluated with their slope, and differentiated once more, in four passes that are written out.

Score matching trains a network F through the pull-back J' c of a given c, J = dF/dh. With f = F(h), s = J' c and the
loss's slopes v_f, v_s in both, its gradient in the weights takes four passes over the layers, two of them before the
loss is known and two after:

    value    h -> f                                  slope    c -> s = J' c, from the last layer to the first
    tangent  v_s -> J v_s                            curve    v_f -> the slope of <v_f, f> + <c, J v_s> in every input

A layer is linear or acts on each number alone, so each pass is a few products. Autograd comes to the same sums, but
differentiates a graph of a graph: it has no fast kernel for the second derivative of a convolution, copies between
layouts, and takes the network's exponentials five times. Images are (H, W, B, C) throughout, pixels first, as
`energy.fourier` likes them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from thalweg.energy.fourier import plane

FEW_CHANNELS = 8
Map = Callable[[Tensor], Tensor]
T = TypeVar("T")


class Node(Protocol):
    """A part of a network. A pass may read what the passes before it left in the node."""

    def value(self, h: Tensor) -> Tensor: ...

    def slope(self, c: Tensor) -> Tensor: ...

    def tangent(self, v: Tensor) -> Tensor: ...

    def curve(self, m: Tensor) -> Tensor: ...

    def parts(self) -> Iterator["Node"]: ...


class Leaf:
    """Abstract: a node without nodes inside."""

    def parts(self) -> Iterator[Node]:
        yield self  # pyright: ignore[reportReturnType]


class Linear(Leaf):
    """Abstract: y = out(into(x) W) + bias, W (R, I, O) for `into`'s (R, B, I).

    `parameters` are the module's own, from which W and the bias come; after `curve`, `grads` are the gradients in them.
    """

    into: Map
    into_back: Map
    out: Map
    out_back: Map
    weight: Tensor

    def __init__(self, m: nn.Conv2d | nn.ConvTranspose2d):
        self.parameters = (m.weight,) if m.bias is None else (m.weight, m.bias)
        self.bias = None if m.bias is None else m.bias.detach()

    def weight_back(self, g: Tensor) -> Tensor:
        """The gradient in W as one in the module's weight."""
        raise NotImplementedError

    def value(self, h: Tensor) -> Tensor:
        self.x = self.into(h)
        y = self.out(torch.bmm(self.x, self.weight))
        return y if self.bias is None else y.add_(self.bias)

    def slope(self, c: Tensor) -> Tensor:
        self.c = self.out_back(c)
        return self.into_back(torch.bmm(self.c, self.weight.mT))

    def tangent(self, v: Tensor) -> Tensor:
        self.v = self.into(v)
        return self.out(torch.bmm(self.v, self.weight))

    def curve(self, m: Tensor) -> Tensor:
        return self.into_back(torch.bmm(self.learn(m), self.weight.mT))

    def learn(self, m: Tensor) -> Tensor:
        """Set `grads`; what `curve` goes on with."""
        of_bias = () if self.bias is None else (m.sum((0, 1, 2)),)
        m = self.out_back(m)
        of_weight = torch.baddbmm(torch.bmm(self.x.mT, m), self.v.mT, self.c)
        self.grads = (self.weight_back(of_weight), *of_bias)
        return m


class Convolution(Linear):
    """A 3 x 3 convolution with padding 1, by spectra."""

    def __init__(self, m: nn.Conv2d):
        super().__init__(m)
        self.kernel = m.weight.detach()

    def value(self, h: Tensor) -> Tensor:
        p = plane(h.shape[0], h.shape[1], h.dtype)
        self.into, self.into_back, self.out, self.out_back = p.into.spread, p.into.gather, p.out.gather, p.out.spread
        self.weight, self.weight_back = p.weights(self.kernel), p.weights_back
        return super().value(h)


class Shifts(Linear):
    """A 3 x 3 convolution with padding 1 and few channels on one side: a product over patches of that side."""

    def __init__(self, m: nn.Conv2d):
        super().__init__(m)
        w = m.weight.detach()
        self.shape, self.few_inputs = w.shape, w.shape[1] < w.shape[0]
        if self.few_inputs:
            self.weight = w.permute(2, 3, 1, 0).reshape(1, -1, w.shape[0])
            self.into, self.into_back, self.out, self.out_back = _nine, self._add_nine, self._image, _flat
        else:  # what a pixel gives its neighbours instead of what it has from them: the patch is turned about
            self.weight = w.flip(2, 3).permute(1, 2, 3, 0).reshape(1, w.shape[1], -1)
            self.into, self.into_back, self.out, self.out_back = _flat, self._image, self._add_nine, _nine

    def weight_back(self, g: Tensor) -> Tensor:
        outputs, inputs = self.shape[:2]
        if self.few_inputs:
            return g.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
        return g.view(inputs, 3, 3, outputs).flip(1, 2).permute(3, 0, 1, 2)

    def value(self, h: Tensor) -> Tensor:
        self.size = h.shape[:3]
        return super().value(h)

    def _image(self, y: Tensor) -> Tensor:
        return y.view(*self.size, -1)

    def _add_nine(self, p: Tensor) -> Tensor:
        height, width, rows = self.size
        p = p.view(height, width, rows, 3, 3, -1)
        sums = p.new_zeros(height + 2, width + 2, rows, p.shape[-1])
        for i in range(3):
            for j in range(3):
                sums[i : i + height, j : j + width] += p[:, :, :, i, j]
        return sums[1:-1, 1:-1].contiguous()


def _nine(h: Tensor) -> Tensor:
    height, width = h.shape[:2]
    p = F.pad(h, (0, 0, 0, 0, 1, 1, 1, 1)).unfold(0, 3, 1).unfold(1, 3, 1)
    return p.permute(0, 1, 2, 4, 5, 3).reshape(1, height * width * h.shape[2], -1)


def convolution(m: nn.Conv2d) -> Linear:
    """The node for a 3 x 3 convolution: by patches where one side has few channels, else by spectra."""
    return Shifts(m) if min(m.weight.shape[:2]) <= FEW_CHANNELS else Convolution(m)


class Halve(Linear):
    """A 2 x 2 convolution with stride 2, weight (O, I, 2, 2)."""

    def __init__(self, m: nn.Conv2d | nn.ConvTranspose2d):
        super().__init__(m)
        self.shape = m.weight.shape
        self.weight = m.weight.detach().permute(2, 3, 1, 0).reshape(1, -1, self.shape[0])
        self.into, self.into_back, self.out, self.out_back = _patches, self._pixels, self._image, _flat

    def weight_back(self, g: Tensor) -> Tensor:
        outputs, inputs = self.shape[:2]
        return g.reshape(2, 2, inputs, outputs).permute(3, 2, 0, 1)

    def value(self, h: Tensor) -> Tensor:
        self.size = (h.shape[0] // 2, h.shape[1] // 2, h.shape[2])
        return super().value(h)

    def _image(self, y: Tensor) -> Tensor:
        return y.view(*self.size, -1)

    def _pixels(self, p: Tensor) -> Tensor:
        height, width, rows = self.size
        p = p.view(height, width, rows, 2, 2, -1).permute(0, 3, 1, 4, 2, 5)
        return p.reshape(2 * height, 2 * width, rows, -1)


class Double(Halve):
    """A transposed 2 x 2 convolution with stride 2, weight (I, O, 2, 2): the transpose of `Halve` with that weight."""

    def __init__(self, m: nn.ConvTranspose2d):
        super().__init__(m)
        self.weight = self.weight.mT
        self.into, self.into_back, self.out, self.out_back = _flat, self._image, self._pixels, _patches

    def weight_back(self, g: Tensor) -> Tensor:
        return super().weight_back(g.mT)

    def value(self, h: Tensor) -> Tensor:
        self.size = h.shape[:3]
        return Linear.value(self, h)


def _patches(h: Tensor) -> Tensor:
    height, width, rows, channels = h.shape
    h = h.view(height // 2, 2, width // 2, 2, rows, channels).permute(0, 2, 4, 1, 3, 5)
    return h.reshape(1, -1, 4 * channels)


def _flat(y: Tensor) -> Tensor:
    return y.reshape(1, -1, y.shape[-1])


class SiLU(Leaf):
    """y = a s(a), s the sigmoid; y' = s + y (1 - s), y'' = s (1 - s) (2 + a - 2 y): one exponential for all passes."""

    def value(self, h: Tensor) -> Tensor:
        self.a, self.s = h, torch.sigmoid(h)
        self.y = h * self.s
        return self.y

    def slope(self, c: Tensor) -> Tensor:
        self.c, self.first = c, torch.addcmul(self.y, self.y, self.s, value=-1).add_(self.s)
        return c * self.first

    def tangent(self, v: Tensor) -> Tensor:
        self.v = v
        return v * self.first

    def curve(self, m: Tensor) -> Tensor:
        w = torch.add(self.a, self.y, alpha=-2).add_(2).mul_(self.c).mul_(self.v)
        return torch.ops.aten.sigmoid_backward(w, self.s).addcmul_(m, self.first)


class Modulate(Leaf):
    """y = shift + a (1 + scale), scale and shift side by side in `level` (B, 2 C).

    After `slope`, `own_slope` has the slope in `level`; `own_tangent` must be set before `tangent`; `own_curve` then.
    """

    own_tangent: Tensor

    def __init__(self, level: Tensor):
        self.level = level
        scale, self.shift = level.detach().chunk(2, dim=1)
        self.gain = 1 + scale

    def value(self, h: Tensor) -> Tensor:
        self.a = h
        return torch.addcmul(self.shift, h, self.gain)

    def slope(self, c: Tensor) -> Tensor:
        self.c = c
        self.own_slope = torch.cat([(c * self.a).sum((0, 1)), c.sum((0, 1))], 1)
        return c * self.gain

    def tangent(self, v: Tensor) -> Tensor:
        self.v = v
        self.turn, move = self.own_tangent.chunk(2, dim=1)
        return torch.addcmul(move, v, self.gain).addcmul_(self.a, self.turn)

    def curve(self, m: Tensor) -> Tensor:
        in_gain = (m * self.a).addcmul_(self.c, self.v).sum((0, 1))
        self.own_curve = torch.cat([in_gain, m.sum((0, 1))], 1)
        return (m * self.gain).addcmul_(self.c, self.turn)


class Chain:
    """One node after the other."""

    def __init__(self, nodes: Sequence[Node]):
        self.nodes = list(nodes)

    def parts(self) -> Iterator[Node]:
        for node in self.nodes:
            yield from node.parts()

    def value(self, h: Tensor) -> Tensor:
        for node in self.nodes:
            h = node.value(h)
        return h

    def slope(self, c: Tensor) -> Tensor:
        for node in reversed(self.nodes):
            c = node.slope(c)
        return c

    def tangent(self, v: Tensor) -> Tensor:
        for node in self.nodes:
            v = node.tangent(v)
        return v

    def curve(self, m: Tensor) -> Tensor:
        for node in reversed(self.nodes):
            m = node.curve(m)
        return m


class Residual(Chain):
    """h + chain(h)."""

    def value(self, h: Tensor) -> Tensor:
        return super().value(h).add_(h)

    def slope(self, c: Tensor) -> Tensor:
        return super().slope(c).add_(c)

    def tangent(self, v: Tensor) -> Tensor:
        return super().tangent(v).add_(v)

    def curve(self, m: Tensor) -> Tensor:
        return super().curve(m).add_(m)


class _Passes(Function):
    """(f, s, slopes in the levels): value and slope before the loss, tangent and curve after it."""

    @staticmethod
    def forward(ctx: Any, root: Chain, h: Tensor, c: Tensor, *inputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.root = root
        f, s = root.value(h), root.slope(c)
        return f, s, *(m.own_slope for m in _of(root, Modulate))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_f: Tensor, v_s: Tensor, *v_levels: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        levels = _of(ctx.root, Modulate)
        for m, v in zip(levels, v_levels, strict=True):
            m.own_tangent = v
        first, *middle, last = ctx.root.nodes  # nobody asks for the last tangent, nor for the first layer's curve
        last.v = last.into(Chain([first, *middle]).tangent(v_s))
        first.learn(Chain([*middle, last]).curve(v_f))
        grads = (g for node in _of(ctx.root, Linear) for g in node.grads)
        return None, None, None, *(m.own_curve for m in levels), *grads


def _of(root: Node, kind: type[T]) -> list[T]:
    return [node for node in root.parts() if isinstance(node, kind)]


def value_and_slope(root: Chain, h: Tensor, c: Tensor, *, once_more: bool) -> tuple[Tensor, ...]:
    """f = root(h), s = J' c and, if `once_more`, the slopes in the levels of `Modulate`; h and c are constants.

    `root` serves one evaluation; it begins and ends with convolutions. With `once_more` all
    results can be differentiated in parameters and levels, once.
    """
    h, c = h.detach(), c.detach()
    if not once_more:
        with torch.no_grad():
            return root.value(h), root.slope(c)
    levels = [m.level for m in _of(root, Modulate)]
    parameters = [p for node in _of(root, Linear) for p in node.parameters]
    return _Passes.apply(root, h, c, *levels, *parameters)  # pyright: ignore[reportReturnType]
