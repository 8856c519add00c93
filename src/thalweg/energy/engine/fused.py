"""An energy evaluated as fast as its modules allow while a chain runs.

Inside a chain the weights do not change and only dE/dx is needed. So in the block of a `FrozenEnergy`

- the energy is `frozen`: evaluation mode, normalised weights computed once, no gradients of weights;
- consecutive known layers of an nn.Sequential are one node of the graph, with its gradient written out and its images
  in channels_last (`energy.engine.layers`);
- convolutions that stand in no nn.Sequential give channels_last too, and a `view` that this layout does not allow is
  taken of a contiguous copy (`_AnyLayout`);
- freed memory stays with the process, so that the next step has no page faults.

All this changes the energy by rounding only, and is undone when the chain ends. The modules are inspected once, before
the chain. Inputs and outputs of an nn.Sequential keep the layout that its modules would give them. Everything else goes
through autograd; a second derivative through fused layers is taken of their plain form. The plain form alone is used
under `torch.func` or `torch.compile`, under autocast on other devices than the CPU or to other types than bfloat16, and
for modules that are compiled or have hooks. Under the CPU's bfloat16 autocast fused layers are in bfloat16 from end to
end, with weights that are cast once a chain.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode

from thalweg.core.device import autocast, in_autocast
from thalweg.energy.base import AnyEnergy, HasGradient, HasSequence, Wraps, marginal
from thalweg.energy.engine.discovery import find_modules
from thalweg.energy.engine.freeze import always_undo, frozen
from thalweg.energy.engine.known_layers import (
    FREE,
    has_hooks,
    has_products,
    layer_of,
    layers_of,
    leaves,
    max_pool,
    reads_input,
    simplified,
    takes,
)
from thalweg.energy.engine.layers import (
    Activation,
    Im2colConv2d,
    Layer,
    backward_through,
    forward_through,
    in_bf16,
)
from thalweg.energy.engine.pooling import MaxPool

_MAPPED_FROM = 1 << 25  # glibc maps blocks from here up at most, and never keeps those


class LayerStack:
    """Layers one after the other, and their copies in bfloat16, which are made when they are first asked for."""

    def __init__(self, layers: Sequence[Layer]):
        self.layers = simplified(layers)
        self.has_products = has_products(layers)

    @functools.cached_property
    def bf16(self) -> list[Layer]:
        """The layers in bfloat16."""
        return in_bf16(self.layers)

    def bf16_wanted(self, x: Tensor) -> bool | None:
        """Whether autocast asks for bfloat16 at x; None where only the modules themselves do what it asks."""
        device = x.device.type
        if not in_autocast(x.device) or not self.has_products:
            return False
        able = device == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
        return True if able and torch.get_autocast_dtype(device) == torch.bfloat16 else None


class _FusedLayers(Function):
    """Layers one after the other as one node. Where the gradient is differentiated again the plain form is used.

    y and dE/dx are made contiguous where x is and the modules would give them so (`usual`). Input and output are saved
    by autograd where `backward` reads them, so that a change in place is an error.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stack: LayerStack, plain: Callable[[Tensor], Tensor], usual: bool, bf16: bool
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.x, ctx.plain, ctx.bf16, ctx.layers = x, plain, bf16, stack.bf16 if bf16 else stack.layers
        ctx.usual = usual and x.is_contiguous() and not _in_channels_last(x)
        y, ctx.kept = forward_through(ctx.layers, x.bfloat16() if bf16 else x)
        ctx.turns = ctx.usual and y.device.type == "cpu" and not y.is_contiguous() and y.ndim == 4
        y = y.contiguous() if ctx.usual else y
        y = y if y._base is None else y.clone()  # autograd lets nobody change a view that a node gives
        last = ctx.layers[-1]
        reads_y = isinstance(last, Activation) and last.of_result
        if reads_y:
            ctx.kept[-1] = None  # y would keep its own node alive, and that y, for ever
        ctx.save_for_backward(y if reads_y else None, x if reads_input(ctx.layers) else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            with autocast(g.device, ctx.bf16):
                y = ctx.plain(ctx.x)
            (g,) = torch.autograd.grad(y, ctx.x, g, create_graph=True)
            return g, None, None, None, None
        y, _ = ctx.saved_tensors
        g = g.contiguous(memory_format=torch.channels_last) if ctx.turns else g  # layouts that differ are slow
        g = backward_through(ctx.layers, g, ctx.kept if y is None else [*ctx.kept[:-1], y]).to(ctx.x.dtype)
        return g.contiguous() if ctx.usual else g, None, None, None, None


def _fused(layers: LayerStack, plain: Callable[[Tensor], Tensor], usual: bool, x: Tensor) -> Tensor:
    """The layers at x: by one node where only a first derivative by autograd is to come, else by the plain form."""
    special = (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )
    bf16 = None if special or not takes(layers.layers, x) else layers.bf16_wanted(x)
    if bf16 is None:
        return plain(x)
    plain_tensor = type(x) is Tensor  # not of a subclass, which has functions of its own
    with torch._C.DisableTorchFunction() if plain_tensor else nullcontext():  # `_AnyLayout` would look at each call
        return _FusedLayers.apply(x, layers, plain, usual, bf16)  # pyright: ignore[reportReturnType]


def _in_order(parts: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x


def _fuse(modules: Sequence[nn.Module], layers: Sequence[Layer]) -> Callable[[Tensor], Tensor]:
    """The modules' layers as one function."""
    usual = not any(_in_channels_last(p) for m in modules for p in m.parameters())
    return functools.partial(_fused, LayerStack(layers), functools.partial(_in_order, modules), usual)


def _in_channels_last(x: Tensor) -> bool:
    """Whether a weight or image is in channels_last by its strides, as torch itself decides."""
    return x.ndim == 4 and x.stride() != torch.empty(x.shape, device="meta").stride()


def _parts(modules: Sequence[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """The modules, with known layers in a row replaced by one function where that gains anything."""
    modules, layers = list(leaves(modules)), []
    parts: list[Callable[[Tensor], Tensor]] = []
    for i, m in enumerate([*modules, None]):
        layer = None if m is None else layer_of(m, layers)
        if layer is not None:
            layers.append(layer)
            continue
        start, end = i - len(layers), i
        while layers and isinstance(layers[-1], FREE):  # autograd handles views of a working layer's output
            layers.pop()
            end -= 1
        gains = len(layers) > 1 or any(isinstance(layer, Im2colConv2d | MaxPool) for layer in layers)
        parts += [_fuse(modules[start:end], layers)] if gains else modules[start:end]
        parts += modules[end:i] if m is None else [*modules[end:i], m]
        layers = []
    return parts


def _faster(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """(module, its new forward): Sequentials with fused layers, and convolutions that stand in none."""
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        return
    inside: set[int] = set()
    for m in modules:
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward and "forward" not in m.__dict__:
            parts = _parts(list(m))
            inside |= {id(child) for child in leaves(m)}
            if any(isinstance(part, functools.partial) for part in parts):
                yield m, functools.partial(_in_order, parts)
    for m in modules:
        layer = layer_of(m) if isinstance(m, nn.Conv2d) and id(m) not in inside else None
        if layer is not None and m.weight.device.type == "cpu":
            yield m, functools.partial(_fused, LayerStack([layer]), functools.partial(type(m).forward, m), False)


class _AnyLayout(TorchFunctionMode):
    """For convolutions that a user's `forward` calls one by one, which give channels_last (`_faster`).

    A `view` that this layout does not allow is taken of the usual one. Max pooling by a function is a fused layer.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.view:
            return _view(*args, **(kwargs or {}))
        if func is not F.max_pool2d and func is not torch.max_pool2d:
            return func(*args, **(kwargs or {}))
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        x, layer = given.pop("input"), max_pool(**given)
        if layer is None or not isinstance(x, Tensor) or x.ndim != 4:
            return func(*args, **(kwargs or {}))
        return _fused(LayerStack([layer]), lambda x: torch.ops.aten.max_pool2d(x, *layer.window), True, x)


def _view(x: Tensor, *shape: Any, **named: Any) -> Tensor:
    try:
        return x.view(*shape, **named)
    except RuntimeError:
        return x.contiguous().view(*shape, **named)


def hooked(m: nn.Module) -> bool:
    """Whether the module has hooks, its own or global ones."""
    everywhere = nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks
    return bool(everywhere) or has_hooks(m)


@functools.cache
def keep_memory() -> None:
    """Make glibc keep freed blocks of up to 32 MiB, by freeing one such block (it adapts its threshold; see mallopt).

    Otherwise activations are returned to the system at each step, and page faults cost a step of a small network 15 to
    25 % of its time, and energies of 28 x 28 images by convolutions 40 %. The block itself is never written, so it
    takes no memory. The threshold stays for the life of the process, which may then keep up to 64 MiB more than it
    uses.
    """
    torch.empty(_MAPPED_FROM - (1 << 13), dtype=torch.uint8, device="cpu")


def is_compiled(m: nn.Module) -> bool:
    """Whether the module is compiled, by torch.compile or as a script."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # takes seconds to import; there if anything is compiled
    kinds = (torch.jit.ScriptModule, getattr(dynamo, "OptimizedModule", torch.jit.ScriptModule))
    return isinstance(m, kinds) or m._compiled_call_impl is not None


@contextmanager
def _replaced(modules: Sequence[nn.Module]) -> Iterator[None]:
    changed = list(_faster(modules))

    def undo() -> None:
        for m, forward in changed:
            if m.__dict__.get("forward") is forward:  # an interrupt may have come before it was
                del m.__dict__["forward"]

    try:
        for m, forward in changed:
            m.__dict__["forward"] = forward
        yield
    finally:
        always_undo([undo])


class _Whole(LayerStack):
    """(E(x), dE/dx) of E = marginal(f), f = layers one after the other, without a graph.

    For small networks building the graph costs as much as the arithmetic.
    """

    def __call__(self, x: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
        layers = self.bf16 if bf16 else self.layers
        with torch.no_grad():
            f, kept = forward_through(layers, x.detach().bfloat16() if bf16 else x.detach())
            u = marginal(f)
            g = torch.full_like(f, -1.0) if f.shape[1] == 1 else -torch.softmax(f, dim=1)
            g = backward_through(layers, g, kept).to(x.dtype)
            return u.to(x.dtype), g.contiguous() if x.is_contiguous() else g


def _whole(energy: object) -> _Whole | None:
    """For an energy that has `sequence()` of known layers only, no hooks, and overrides none of the methods."""
    if not isinstance(energy, HasSequence) or not isinstance(energy, nn.Module):
        return None
    owner = next((c for c in type(energy).__mro__ if "sequence" in c.__dict__), None)
    same = all(getattr(type(energy), n, None) is getattr(owner, n, None) for n in ("forward", "outputs", "features"))
    if not same or any(map(hooked, energy.modules())):
        return None
    layers = layers_of(energy.sequence())
    return None if layers is None else _Whole(layers)


class FrozenEnergy:
    """An energy E(x) or U(x, t) while a chain runs, `frozen` and faster; its attributes are the energy's own.

        with FrozenEnergy.of(energy) as frozen:
            ...

    Args:
        energy: The energy.
        whole: The energy as layers, if it is a sequence of known layers.
        images: Whether it has convolutions, around which any layout must do (`_AnyLayout`).
    """

    def __init__(self, energy: AnyEnergy, whole: _Whole | None = None, images: bool = False):
        self.energy, self._whole = energy, whole
        self._mode = _AnyLayout() if images else nullcontext()
        self._own = energy.value_and_grad if isinstance(energy, HasGradient) else None
        self._kind: tuple[object, ...] | None = None  # shape, type and device of the positions of the last call

    @classmethod
    @contextmanager
    def of(cls, energy: AnyEnergy) -> Iterator["FrozenEnergy"]:
        """The energy frozen in this block, and restored afterwards, also after an error.

        Costs a copy of the convolutions' weights. Other threads wait for the modules.
        """
        keep_memory()
        modules = find_modules(energy)
        with frozen(energy):
            if any(is_compiled(m) for m in modules):
                yield cls(energy)
                return
            fast = cls._without_graph(energy)
            with _replaced(modules):
                yield (
                    fast if isinstance(fast, cls) else cls(fast, images=any(isinstance(m, nn.Conv2d) for m in modules))
                )

    @classmethod
    def _without_graph(cls, energy: AnyEnergy) -> AnyEnergy:
        """The energy, evaluated without a graph where it is a sequence of known layers, inside wrappers too."""
        if isinstance(energy, Wraps):
            return energy.over(cls._without_graph)
        whole = _whole(energy)
        return energy if whole is None else cls(energy, whole)

    def value_and_grad(self, x: Tensor, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(E(x), dE/dx) by a short way, or None where there is none; only after a call with positions of x's shape."""
        if self._own is not None and (found := self._own(x, *t)) is not None:
            return found
        kind = (x.shape[1:], x.dtype, x.device)
        if self._whole is None or t or kind != self._kind:
            return None
        bf16 = self._whole.bf16_wanted(x)
        return None if bf16 is None else self._whole(x, bf16)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying looks for these before there is an energy
            raise AttributeError(name)
        return getattr(self.energy, name)

    def __call__(self, *args: Tensor) -> Tensor:
        with self._mode:
            u, x = self.energy(*args), args[0]
        self._kind = (x.shape[1:], x.dtype, x.device)
        return u
