"""Spectral normalisation that never advances inside a sampling chain.

W_sn = W / sigma(W), with sigma estimated by power iteration (Miyato et al. 2018). The iteration belongs to
the optimiser step: in train mode every forward pass advances it, so a chain run in train mode samples from an
energy that changes under its feet and pays for the iteration at each step. `frozen` is the remedy: evaluation
mode, weights folded once.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from thalweg.energy.reach import modules_of

E = TypeVar("E")
M = TypeVar("M", bound=nn.Module)
Undo = Callable[[], Any]


def normalise(layer: M, on: bool = True) -> M:
    """The layer with spectral normalisation of its weight, or as it is when `on` is false."""
    if on:
        spectral_norm(layer)
    return layer


def surely(undo: Undo) -> None:
    """Put something back, once more if Ctrl-C or another error came between; `undo` may be begun again at any point."""
    try:
        undo()
    except BaseException:
        undo()
        raise


@contextmanager
def frozen(energy: E) -> Iterator[E]:
    """The same energy, held still: evaluation mode, normalised weights computed once, no parameter gradients.

    Works for both of torch's spectral-norm interfaces, for any other module, and for wrappers of modules
    (`energy.reach.modules_of`); a callable without modules passes through. Modes, gradient flags and hooks are restored
    on leaving, also after an exception. Several threads may hold one module: the first changes it, the last puts it
    back. Do not train a module that another thread holds, nor open torch's own `parametrize.cached()` around a
    `frozen` block.
    """
    modules = list(dict.fromkeys(m for root in modules_of(energy) for m in root.modules()))
    flags = list({id(p): p for m in modules for p in m.parameters(recurse=False)}.values())
    changes = [*((m, _evaluates) for m in modules), *((p, _constant) for p in flags), *((m, _folded) for m in modules)]
    holder = object()
    with ExitStack() as stack:
        with changing:
            for thing, change in changes:
                if not _needed(thing, change):
                    continue
                stack.callback(surely, functools.partial(_give, thing, change, holder))
                _take(thing, change, holder)
        yield energy


class _Held(NamedTuple):
    """What is changed for a while, by whom it is wanted so, and how to put it back."""

    thing: Any
    holders: set[object]
    undo: list[Undo]


changing = threading.RLock()  # whoever changes a network for a while, or reads it to do so, has this lock
_held: dict[tuple[int, Any], _Held] = {}


def _needed(thing: Any, change: Callable[[Any, list[Undo]], None]) -> bool:
    """Whether the thing is to be changed, or is so only for as long as another wants it."""
    if (id(thing), change) in _held:
        return True
    if change is _constant:
        return thing.requires_grad
    if change is _evaluates:
        return thing.training
    return isinstance(thing, ParametrizationList) or bool(thing._forward_pre_hooks)


def _take(thing: Any, change: Callable[[Any, list[Undo]], None], holder: object) -> None:
    """Change the thing, unless somebody has: then it is changed already."""
    held = _held.setdefault((id(thing), change), _Held(thing, set(), []))
    if not held.holders:
        change(thing, held.undo)
    held.holders.add(holder)


def _give(thing: Any, change: Callable[[Any, list[Undo]], None], holder: object) -> None:
    """Undo the change if nobody else wants it."""
    with changing:
        held = _held.get((id(thing), change))
        if held is None:  # interrupted before it was taken
            return
        held.holders.discard(holder)
        if not held.holders:
            for undo in reversed(held.undo):
                undo()
            del _held[id(thing), change]


def _evaluates(m: nn.Module, undo: list[Undo]) -> None:
    undo.append(functools.partial(setattr, m, "training", m.training))
    m.training = False


def _constant(p: nn.Parameter, undo: list[Undo]) -> None:
    undo.append(functools.partial(_set_flag, p, p.requires_grad))
    p.requires_grad_(False)


def _set_flag(p: nn.Parameter, requires_grad: bool) -> None:
    if p.is_inference():
        with torch.inference_mode():
            p.requires_grad_(requires_grad)
    else:
        p.requires_grad_(requires_grad)


def _folded(m: nn.Module, undo: list[Undo]) -> None:
    """The module's normalised weights as constants; by the older, hook-based interface without the hooks.

    What hooks set anew at each call, as those of the older weight norm do, is put back as it was.
    """
    if isinstance(m, ParametrizationList):
        weight = m()
        undo.append(functools.partial(m.__dict__.pop, "forward", None))
        m.__dict__["forward"] = lambda: weight
        return
    hooks = m._forward_pre_hooks
    tensors = {name: value for name, value in m.__dict__.items() if isinstance(value, Tensor)}
    undo.append(functools.partial(m.__dict__.update, tensors))
    undo.append(functools.partial(_put_back, hooks, list(hooks.items())))
    for key, hook in list(hooks.items()):
        if isinstance(hook, SpectralNorm):
            setattr(m, hook.name, hook.compute_weight(m, do_power_iteration=False))
            del hooks[key]


def _put_back(hooks: dict[int, Any], before: list[tuple[int, Any]]) -> None:
    hooks.clear()
    hooks.update(before)
