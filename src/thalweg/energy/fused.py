"""An energy evaluated as fast as its modules allow while a chain holds it still, whoever wrote it.

Inside a chain the weights do not change and only dE/dx is wanted. So for as long as `held` lasts

- the energy is `frozen`: evaluation mode, normalised weights folded, no gradients of weights;
- convolutions have channels_last weights, and so their images, which oneDNN takes without copying;
- a run of known layers in an nn.Sequential is one node of the graph, with its gradient written out (`energy.layers`);
- freed memory stays with the process, for the next step to use without a page fault.

All this changes the energy by rounding only, and nothing of it is left when the chain ends. Anything else that a module
does goes through autograd as ever; a second derivative through a run is taken of its plain form; and under autocast,
`torch.func` or `torch.compile`, and for modules that are compiled or have hooks, the plain form is all there is.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn.modules import module as nn_module

from thalweg.energy.base import marginal
from thalweg.energy.layers import HOOKS, Layer, OneChannel, layer_of, takes
from thalweg.energy.reach import modules_of, turn
from thalweg.energy.spectral import changing, frozen, surely

logger = logging.getLogger(__name__)
TOLD = "the energy is evaluated without changes of layout, which it does not take: %s"
_MAPPED_FROM = 1 << 25  # glibc maps blocks from here up at most, and never keeps those


class _Run(Function):
    """Layers one after the other as one node. The plain form serves where the gradient is differentiated again.

    What the way back reads of the input or the output is saved by autograd, which refuses it once it has been changed
    in place; what lies between is nobody else's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer], plain: Callable[[Tensor], Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.x, ctx.plain, ctx.way, y = x, plain, [], x
        for layer in layers:
            y, kept = layer.forward(y)
            ctx.way.append((layer, kept))
        reads_y = getattr(layers[-1], "of_result", False)
        if reads_y:
            ctx.way[-1] = (layers[-1], None)  # y itself would hold its own node, and so be held for ever
        ctx.save_for_backward(y if reads_y else None, x if getattr(layers[0], "of_result", True) is False else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            (g,) = torch.autograd.grad(ctx.plain(ctx.x), ctx.x, g, create_graph=True)
            return g, None, None
        y, _ = ctx.saved_tensors
        for i, (layer, kept) in reversed(list(enumerate(ctx.way))):
            g = layer.backward(g, y if y is not None and i + 1 == len(ctx.way) else kept)
        return g, None, None


def _run(layers: Sequence[Layer], plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The layers at x: by one node where only a first derivative by autograd is to come, else by the plain form."""
    special = (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
    return plain(x) if special or not takes(layers, x) else _Run.apply(x, layers, plain)  # pyright: ignore[reportReturnType]


def _chain(parts: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x


def _parts(modules: Sequence[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """The modules, with each run of known layers replaced by one function; one that would gain nothing stays."""
    parts: list[Callable[[Tensor], Tensor]] = []
    layers: list[Layer] = []
    for i, m in enumerate([*modules, None]):
        layer = None if m is None else layer_of(m)
        if layer is not None:
            layers.append(layer)
            continue
        plain = modules[i - len(layers) : i]
        gains = len(layers) > 1 or any(isinstance(layer, OneChannel) for layer in layers)
        parts += [functools.partial(_run, layers, functools.partial(_chain, plain))] if gains else plain
        parts += [] if m is None else [m]
        layers = []
    return parts


def _faster(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """(module, its new forward): Sequentials with runs, and convolutions of one channel wherever they stand."""
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        return
    inside: set[int] = set()
    for m in modules:
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward and "forward" not in m.__dict__:
            parts = _parts(list(m))
            if any(isinstance(part, functools.partial) for part in parts):
                inside |= {id(child) for child in m}
                yield m, functools.partial(_chain, parts)
    for m in modules:
        if isinstance(m, nn.Conv2d) and id(m) not in inside and isinstance(layer := layer_of(m), OneChannel):
            yield m, functools.partial(_run, [layer], functools.partial(type(m).forward, m))


def hooked(m: nn.Module) -> bool:
    """Whether somebody wants to be told of the module's calls."""
    everywhere = nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks
    return bool(everywhere) or any(getattr(m, name) for name in HOOKS)


@functools.cache
def keep_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MiB, by freeing one such block (it learns its threshold; see mallopt).

    It would give activations back to the system at each step and have them zeroed by page faults at the next, which
    costs a step of a small network 15 to 25 % of its time. The block itself is never touched, so it costs no memory.

    This lasts as long as the process, which then may hold up to 64 MiB more than it uses. It cannot be undone:
    `mallopt` could set another threshold, and would end glibc's own adjustment of it.
    """
    torch.empty(_MAPPED_FROM - (1 << 13), dtype=torch.uint8, device="cpu")


def is_compiled(m: nn.Module) -> bool:
    """Whether somebody has compiled the module already, by torch.compile or as a script."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # seconds to import, and of no use where nothing is compiled
    kinds = (torch.jit.ScriptModule, getattr(dynamo, "OptimizedModule", torch.jit.ScriptModule))
    return isinstance(m, kinds) or m._compiled_call_impl is not None


@contextmanager
def channels_last(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Weights of convolutions on the CPU in channels_last, then the very tensors of before."""
    found = (m for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
    weights = {id(p): p for m in found for p in m.parameters()}.values()
    plain = (p for p in weights if p.ndim == 4 and p.device.type == "cpu" and type(p.data) is Tensor)
    changed = [(p, p.data) for p in plain]

    def undo() -> None:
        with changing:
            for p, data in changed:
                p.data = data

    try:
        with changing:
            for p, data in changed:
                p.data = data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        surely(undo)


@contextmanager
def _replaced(modules: Sequence[nn.Module]) -> Iterator[None]:
    changed = list(_faster(modules))

    def undo() -> None:
        with changing:
            for m, forward in changed:
                if m.__dict__.get("forward") is forward:  # an interrupt may have come before it was
                    del m.__dict__["forward"]

    try:
        with changing:
            for m, forward in changed:
                m.__dict__["forward"] = forward
        yield
    finally:
        surely(undo)


class _Whole:
    """(E(x), dE/dx) of E = marginal(f), f = layers one after the other: no graph at all, for networks so small that
    building it costs as much as the arithmetic.
    """

    def __init__(self, layers: Sequence[Layer]):
        self.layers = layers

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            f, way = x.detach(), []
            for layer in self.layers:
                f, kept = layer.forward(f)
                way.append((layer, kept))
            u = marginal(f)
            g = torch.full_like(f, -1.0) if f.shape[1] == 1 else -torch.softmax(f, dim=1)
            for layer, kept in reversed(way):
                g = layer.backward(g, kept)
            return u, g


def _whole(energy: Any) -> _Whole | None:
    """For an energy that offers `sequence()`, known layers all, has no hooks and overrides none of the methods."""
    owner = next((c for c in type(energy).__mro__ if "sequence" in c.__dict__), None)
    if owner is None or not isinstance(energy, nn.Module):
        return None
    same = all(getattr(type(energy), n, None) is getattr(owner, n, None) for n in ("forward", "outputs", "features"))
    if not same or any(getattr(m, name) for m in energy.modules() for name in HOOKS):
        return None
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        return None
    layers = [layer_of(m) for m in energy.sequence()]  # pyright: ignore[reportCallIssue]
    return None if None in layers else _Whole([layer for layer in layers if layer is not None])


class Held:
    """An energy E(x) or U(x, t) inside `held`: its attributes are the energy's own.

    A module may count on the layout of what it computes (`view` after a convolution). Its error is answered once, by
    taking everything back but `frozen` and asking again.
    """

    def __init__(self, energy: Any, stack: ExitStack):
        self.energy, self._stack, self._plain = energy, stack, False
        self._whole: _Whole | None = None
        self._kind: Any = None
        modules = list(dict.fromkeys(m for root in modules_of(energy) for m in root.modules()))
        stack.enter_context(turn(modules))
        if any(is_compiled(m) for m in modules):
            self._settle()
            return
        stack.enter_context(channels_last(modules))
        stack.enter_context(frozen(energy))
        stack.enter_context(_replaced(modules))
        self._whole = _whole(energy)

    def value_and_grad(self, x: Tensor, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E(x), dE/dx) by the shortest way, or None where there is none: once a call has taken positions like x."""
        own = getattr(self.energy, "value_and_grad", None)
        if own is not None and (found := own(x, *t)) is not None:
            return found
        kind = (x.shape[1:], x.dtype, x.device)
        if self._whole is None or kind != self._kind or torch.is_autocast_enabled(x.device.type):
            return None
        return self._whole(x)

    def without_layout(self, error: RuntimeError) -> bool:
        """Whether something was taken back for an energy whose way back raised this, so that it can be asked again."""
        if self._plain:
            return False
        self._settle()
        logger.info(TOLD, error)
        return True

    def _settle(self) -> None:
        self._stack.close()
        self._stack.enter_context(frozen(self.energy))
        self._plain, self._whole = True, None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying asks for, before there is an energy to ask
            raise AttributeError(name)
        return getattr(self.energy, name)

    def __call__(self, *args: Tensor) -> Any:
        if self._plain:
            return self.energy(*args)
        try:
            u, x = self.energy(*args), args[0]
            self._kind = (x.shape[1:], x.dtype, x.device)
            return u
        except RuntimeError as error:
            self._settle()
            u = self.energy(*args)
            logger.info(TOLD, error)
            return u


@contextmanager
def held(energy: Any) -> Iterator[Any]:
    """The same energy for as long as a chain lasts, `frozen` and faster; as it was afterwards, also after an error.

    Costs a copy of the convolutions' weights. Another thread that wants to hold one of the modules so waits its turn.
    """
    keep_memory()
    with ExitStack() as stack:
        yield Held(energy, stack)
