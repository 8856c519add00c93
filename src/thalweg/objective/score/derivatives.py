"""How a loss of an energy's gradient gets its own gradient in the parameters: by second derivatives, or without.

The true way differentiates dE/dx once more, in the parameters. Some energies cannot be differentiated twice: fused
attention (torch issues 116350 and 181177), compiled networks, an `autograd.Function` with one derivative. For these
there are finite differences (`thalweg.objective.score.finite_differences`). An objective decides once, in `init`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.energy.base import AnyEnergy, HasTimeGradient
from thalweg.objective.score.wrong_derivatives import is_silently_wrong

Gradient = Literal["auto", "double_backward", "finite_differences"]
GRADIENTS = ("auto", "double_backward", "finite_differences")
log = logging.getLogger("thalweg")
_told: ContextVar[bool] = ContextVar("told", default=True)


class DerivativeChoice(NamedTuple):
    """Whether the loss is differentiated by finite differences: the state of an objective without other memory."""

    finite_differences: bool = False


def check_gradient(gradient: str) -> None:
    """UserError unless it is one of the three."""
    check.one_of(GRADIENTS, gradient=gradient)


def takes_differences(
    gradient: Gradient, objective: object, energy: AnyEnergy, inputs: Sequence[Tensor], num: int = 1
) -> bool:
    """Whether the loss of an objective is to be differentiated by finite differences.

    "auto" tries a second derivative of the energy on two rows, its kernels as they are, and says so in one line where
    there is none, or a wrong one. The energy is left as it was.

    Args:
        gradient: The objective's own setting.
        objective: It is named in the line.
        energy: Called with `inputs`.
        inputs: What the energy takes, of one row or more.
        num: How many of the inputs, from the first, the loss takes the gradient of.
    """
    if gradient != "auto":
        return gradient == "finite_differences"
    found = _tried(energy, inputs, num)
    if found and _told.get():
        text = "%s: %s %s; the loss is differentiated by finite differences"
        log.info(text, type(objective).__name__, type(energy).__name__, found)
    return bool(found)


@contextmanager
def untold() -> Iterator[None]:
    """A block, as of a trial before a run, in which the choice is not said."""
    before = _told.set(False)
    try:
        yield
    finally:
        _told.reset(before)


def has_second_derivatives(energy: AnyEnergy, inputs: Sequence[Tensor], num: int = 1) -> bool:
    """Whether the gradient in the first `num` inputs can be differentiated in the parameters.

    Tried on the first two rows. True also where the energy or its first derivative fails: that is another fault, which
    the loss tells.
    """
    return _tried(energy, inputs, num, right=False) is None


def _tried(energy: AnyEnergy, inputs: Sequence[Tensor], num: int, *, right: bool = True) -> str | None:
    """What is wrong with second derivatives, which are compared with differences if they shall be `right`; or None."""
    rows = [v[:2].detach().clone() for v in inputs]
    module = energy if isinstance(energy, nn.Module) else None
    buffers = [] if module is None else [buffer.clone() for buffer in module.buffers()]
    devices = [rows[0].device] if rows[0].device.type == "cuda" and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            if num == 2 and _has_own_gradients(energy, rows):
                return None
            if not _differentiates_twice(energy, rows, num):
                return "cannot be differentiated twice"
            wrong = right and is_silently_wrong(energy, rows, num)
            return "has a second derivative that is wrong, without an error" if wrong else None
    finally:  # a forward pass moves the power iteration of spectral norms, for example
        for buffer, before in zip([] if module is None else module.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _has_own_gradients(energy: object, rows: Sequence[Tensor]) -> bool:
    return isinstance(energy, HasTimeGradient) and energy.value_and_grads(*rows) is not None


def _differentiates_twice(energy: AnyEnergy, rows: Sequence[Tensor], num: int) -> bool:
    of = [v.requires_grad_() for v in rows[:num]]
    try:
        total = energy(*of, *rows[num:]).sum()
        torch.autograd.grad(total, of, allow_unused=True, retain_graph=True)
    except Exception:  # a stranger's forward may raise anything
        return True
    try:
        grads = torch.autograd.grad(total, of, create_graph=True, materialize_grads=True)
        squares = [g.square().sum() for g in grads if g.requires_grad]  # none: the energy is linear, its graph ends
        if squares:
            differentiate(torch.stack(squares).sum())
    except Exception:
        return False
    return True


def differentiate(total: Tensor) -> None:
    """Run the whole backward pass of a tensor (), and keep nothing of it: for its errors.

    The gradient in chosen tensors would leave out paths that do not lead to them, and a function with one derivative
    cuts the path to what lies before it.
    """
    nodes, seen, leaves = [total.grad_fn], {total.grad_fn}, []
    while nodes:
        node = nodes.pop()
        for following, _ in () if node is None else node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
                leaf = getattr(following, "variable", None)  # of nodes that accumulate
                leaves += [] if leaf is None else [leaf]
    torch.autograd.grad(total, leaves, allow_unused=True)


def energy_and_grad_in_graph(
    energy: Callable[[Tensor], Tensor], x: Float[Tensor, "b *d"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b *d"]]:
    """(E(x), dE/dx), both in the graph, so that a loss of dE/dx has a gradient in the parameters.

    `torch.func.vjp` under `torch.compile`, which cannot trace `autograd.grad`; `autograd.grad` in eager mode.
    """
    if torch.compiler.is_compiling():
        u, pull = torch.func.vjp(energy, x)  # pyright: ignore[reportAssignmentType]
        return u, pull(torch.ones_like(u))[0]
    _, u, g = grad_in_graph(energy, x)
    return u, g


def grad_in_graph(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x as a leaf, E(x), dE/dx), for a second derivative in x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        u = energy(x)
        return x, u, pulled(u, x, torch.ones_like(u))


def pulled(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v' dy/dx in the graph; zero where y does not depend on x (the gradient of a linear energy)."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y, x, v, create_graph=True, materialize_grads=True)[0]
