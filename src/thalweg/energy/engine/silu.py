"""SiLU with a hand-written second derivative: the activation of energies trained through their gradient.

Score matching differentiates a gradient, so each activation is passed three times: f, f' and f''. Autograd derives
the third pass from a chain of elementary products, each a trip through memory; written out it is two fused calls
and three products. With s = sigmoid(x):

    f(x) = x s,   f'(x) = s (1 + x (1 - s)),   f''(x) = s (1 - s) (2 + x (1 - 2 s)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_silu_backward = torch.ops.aten.silu_backward
_sigmoid_backward = torch.ops.aten.sigmoid_backward


class _SiLUGrad(Function):
    """(g, x) to g f'(x); its backward needs f'' and is itself plain autograd, so higher orders work too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor) -> Tensor:
        return _silu_backward(g, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        g, x = ctx.saved_tensors
        s = torch.sigmoid(x)
        if torch.is_grad_enabled():  # a third derivative is wanted: nothing in place
            return _SiLUGrad.apply(v, x), v * g * s * (1 - s) * (2 + x * (1 - 2 * s))
        w = torch.addcmul(x, x, s, value=-2).add_(2).mul_(v).mul_(g)
        return _silu_backward(v, x), _sigmoid_backward(w, s)


class _SiLU(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SiLUGrad.apply(g, ctx.saved_tensors[0])


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), any shape, with cheap first and second derivatives."""
    if not (x.requires_grad and torch.is_grad_enabled()):  # a Function costs three times the operation
        return torch.nn.functional.silu(x)
    return _SiLU.apply(x)
