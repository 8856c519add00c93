"""Double backward in four passes that are written out: a network with a vector-Jacobian product, and its gradient.

Score matching trains a network F through the product J' c of its Jacobian J = dF/dh with a given cotangent c. With
f = F(h), s = J' c and the loss's cotangents v_f, v_s of both, its gradient in the weights takes four passes over the
layers, two of them before the loss is known and two after:

    forward  h -> f                        vjp       c -> s = J' c, from the last layer to the first
    jvp      v_s -> J v_s                  backward  v_f -> the gradient of <v_f, f> + <c, J v_s> in every input

A layer is linear or acts on each number alone, so each pass is a few products. Autograd comes to the same sums, but
differentiates a graph of a graph: it has no fast kernel for the second derivative of a convolution, copies between
layouts, and takes the network's exponentials five times. Images are (H, W, B, C) throughout, pixels first, as
`energy.engine.double_backward.fft` likes them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from thalweg.energy.engine.double_backward.convolutions import LinearNode

T = TypeVar("T")


class Node(Protocol):
    """A part of a network. A pass may read what the passes before it left in the node."""

    def forward(self, h: Tensor) -> Tensor: ...

    def vjp(self, c: Tensor) -> Tensor: ...

    def jvp(self, v: Tensor) -> Tensor: ...

    def backward(self, m: Tensor) -> Tensor: ...

    def parts(self) -> Iterator["Node"]: ...


class Leaf:
    """Abstract: a node without nodes inside."""

    def parts(self) -> Iterator[Node]:
        yield self  # pyright: ignore[reportReturnType]


class SiLU(Leaf):
    """y = a s(a), s the sigmoid; y' = s + y (1 - s), y'' = s (1 - s) (2 + a - 2 y): one exponential for all passes."""

    def forward(self, h: Tensor) -> Tensor:
        self.a, self.s = h, torch.sigmoid(h)
        self.y = h * self.s
        return self.y

    def vjp(self, c: Tensor) -> Tensor:
        self.c, self.first = c, torch.addcmul(self.y, self.y, self.s, value=-1).add_(self.s)
        return c * self.first

    def jvp(self, v: Tensor) -> Tensor:
        self.v = v
        return v * self.first

    def backward(self, m: Tensor) -> Tensor:
        w = torch.add(self.a, self.y, alpha=-2).add_(2).mul_(self.c).mul_(self.v)
        return torch.ops.aten.sigmoid_backward(w, self.s).addcmul_(m, self.first)


class Modulate(Leaf):
    """y = shift + a (1 + scale), scale and shift side by side in `level` (B, 2 C).

    After `vjp`, `level_vjp` has its part in `level`; `level_jvp`, what `level` adds, must be set before `jvp`; after
    `backward`, `level_grad` has the gradient.
    """

    level_jvp: Tensor

    def __init__(self, level: Tensor):
        self.level = level
        scale, self.shift = level.detach().chunk(2, dim=1)
        self.gain = 1 + scale

    def forward(self, h: Tensor) -> Tensor:
        self.a = h
        return torch.addcmul(self.shift, h, self.gain)

    def vjp(self, c: Tensor) -> Tensor:
        self.c = c
        self.level_vjp = torch.cat([(c * self.a).sum((0, 1)), c.sum((0, 1))], 1)
        return c * self.gain

    def jvp(self, v: Tensor) -> Tensor:
        self.v = v
        self.gain_jvp, shift_jvp = self.level_jvp.chunk(2, dim=1)
        return torch.addcmul(shift_jvp, v, self.gain).addcmul_(self.a, self.gain_jvp)

    def backward(self, m: Tensor) -> Tensor:
        in_gain = (m * self.a).addcmul_(self.c, self.v).sum((0, 1))
        self.level_grad = torch.cat([in_gain, m.sum((0, 1))], 1)
        return (m * self.gain).addcmul_(self.c, self.gain_jvp)


class Sequential:
    """One node after the other."""

    def __init__(self, nodes: Sequence[Node]):
        self.nodes = list(nodes)

    def parts(self) -> Iterator[Node]:
        for node in self.nodes:
            yield from node.parts()

    def forward(self, h: Tensor) -> Tensor:
        for node in self.nodes:
            h = node.forward(h)
        return h

    def vjp(self, c: Tensor) -> Tensor:
        for node in reversed(self.nodes):
            c = node.vjp(c)
        return c

    def jvp(self, v: Tensor) -> Tensor:
        for node in self.nodes:
            v = node.jvp(v)
        return v

    def backward(self, m: Tensor) -> Tensor:
        for node in reversed(self.nodes):
            m = node.backward(m)
        return m


class Residual(Sequential):
    """h + sequence(h)."""

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h).add_(h)

    def vjp(self, c: Tensor) -> Tensor:
        return super().vjp(c).add_(c)

    def jvp(self, v: Tensor) -> Tensor:
        return super().jvp(v).add_(v)

    def backward(self, m: Tensor) -> Tensor:
        return super().backward(m).add_(m)


class _Passes(Function):
    """(f, s, the levels' parts of s): forward and vjp before the loss, jvp and backward after it."""

    @staticmethod
    def forward(ctx: Any, root: Sequential, h: Tensor, c: Tensor, *inputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.root = root
        f, s = root.forward(h), root.vjp(c)
        return f, s, *(m.level_vjp for m in _of(root, Modulate))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_f: Tensor, v_s: Tensor, *v_levels: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.root is None:
            raise RuntimeError("the loss has been differentiated, and its passes are gone: compute it again")
        root, ctx.root = ctx.root, None  # all that the passes keep, hundreds of megabytes, goes when this one ends
        levels = _of(root, Modulate)
        for m, v in zip(levels, v_levels, strict=True):
            m.level_jvp = v
        first, *middle, last = root.nodes  # nobody asks for the last jvp, nor for the gradient in the input
        last.v = last.into(Sequential([first, *middle]).jvp(v_s))
        first.set_grads(Sequential([*middle, last]).backward(v_f))
        grads = (g for node in _of(root, LinearNode) for g in node.grads)
        return None, None, None, *(m.level_grad for m in levels), *grads


def _of(root: Node, kind: type[T]) -> list[T]:
    return [node for node in root.parts() if isinstance(node, kind)]


def forward_and_vjp(root: Sequential, h: Tensor, c: Tensor, *, once_more: bool) -> tuple[Tensor, ...]:
    """f = root(h), s = J' c and, if `once_more`, the parts of s in the levels of `Modulate`; h and c are constants.

    `root` serves one evaluation; it begins and ends with convolutions. With `once_more` all
    results can be differentiated in parameters and levels, once.
    """
    h, c = h.detach(), c.detach()
    if not once_more:
        with torch.no_grad():
            return root.forward(h), root.vjp(c)
    levels = [m.level for m in _of(root, Modulate)]
    parameters = [p for node in _of(root, LinearNode) for p in node.parameters]
    return _Passes.apply(root, h, c, *levels, *parameters)  # pyright: ignore[reportReturnType]
