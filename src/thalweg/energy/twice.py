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

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from thalweg.energy.twice_linear import Linear

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
        if ctx.root is None:
            raise RuntimeError("the loss has been differentiated, and its passes are gone: compute it again")
        root, ctx.root = ctx.root, None  # all that the passes keep, hundreds of megabytes, goes when this one ends
        levels = _of(root, Modulate)
        for m, v in zip(levels, v_levels, strict=True):
            m.own_tangent = v
        first, *middle, last = root.nodes  # nobody asks for the last tangent, nor for the first layer's curve
        last.v = last.into(Chain([first, *middle]).tangent(v_s))
        first.learn(Chain([*middle, last]).curve(v_f))
        grads = (g for node in _of(root, Linear) for g in node.grads)
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
