"""Freezing an energy while a chain runs: evaluation mode, constant weights, normalised weights computed once.

Spectral normalisation is W_sn = W / sigma(W), sigma estimated by power iteration (Miyato et al. 2018). In train mode
each forward pass advances the iteration: a chain would sample from an energy that changes at each step, and pay for it.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from thalweg.energy.engine.discovery import find_modules

E = TypeVar("E")
M = TypeVar("M", bound=nn.Module)
Undo = Callable[[], Any]


def normalise(layer: M, on: bool = True) -> M:
    """The layer with spectral normalisation of its weight, or as it is when `on` is false."""
    if on:
        spectral_norm(layer)
    return layer


def always_undo(undo: Sequence[Undo]) -> None:
    """Undo changes, the last one first; all of them again if Ctrl-C or another error interrupts.

    Each step may be called twice, and before its change was made.
    """
    try:
        for step in reversed(undo):
            step()
    except BaseException:
        for step in reversed(undo):
            step()
        raise


@contextmanager
def frozen(energy: E) -> Iterator[E]:
    """The same energy with fixed weights: evaluation mode, normalisation computed once, no gradients of parameters.

    Works for all modules that `energy.engine.discovery.find_modules` finds, and for both of torch's spectral-norm
    interfaces. Modes, gradient flags and hooks are restored on leaving, also after an exception. Other threads wait for
    the modules (`exclusive`); blocks may be nested. Do not train the modules inside, nor open torch's own
    `parametrize.cached()` around the block.
    """
    kept = _kept.get(id(energy))
    if kept is not None and kept.free():
        yield energy
        return
    modules = find_modules(energy)
    parameters = _parameters(modules)
    undo: list[Undo] = []
    with exclusive([*modules, *parameters]):
        try:
            _fix(modules, parameters, undo)
            yield energy
        finally:
            always_undo(undo)


@contextmanager
def kept_frozen(energy: E) -> Iterator[E]:
    """`frozen` for long, of an energy that is asked again and again: looking at its modules takes a small call's time.

    Inside, `frozen` gives this object at once, to any thread, and makes none wait but for a block on the same modules
    that another thread has begun. Do not train the modules inside, nor move them.
    """
    modules = find_modules(energy)
    parameters = _parameters(modules)
    undo: list[Undo] = []
    try:
        with exclusive([*modules, *parameters]):
            _fix(modules, parameters, undo)
        _kept[id(energy)] = _Kept(energy, frozenset(map(id, modules)))
        yield energy
    finally:
        _kept.pop(id(energy), None)
        always_undo(undo)


class _Kept(NamedTuple):
    """An energy that is kept frozen, and the ids of its modules."""

    energy: object
    modules: frozenset[int]

    def free(self) -> bool:
        """Whether no block has its modules."""
        return _owners.keys().isdisjoint(self.modules)


_kept: dict[int, _Kept] = {}  # by the energy's id


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Each once."""
    return list({id(p): p for m in modules for p in m.parameters(recurse=False)}.values())


def _fix(modules: Sequence[nn.Module], parameters: Sequence[nn.Parameter], undo: list[Undo]) -> None:
    """Evaluation mode, constant parameters, normalised weights computed once."""
    for m in modules:
        _evaluate(m, undo)
    for p in parameters:
        _make_constant(p, undo)
    for m in modules:
        _fold(m, undo)


def _evaluate(m: nn.Module, undo: list[Undo]) -> None:
    if m.training:
        undo.append(functools.partial(setattr, m, "training", True))
        m.training = False


def _make_constant(p: nn.Parameter, undo: list[Undo]) -> None:
    if p.requires_grad:
        undo.append(functools.partial(_require_grad, p))
        p.requires_grad_(False)


def _require_grad(p: nn.Parameter) -> None:
    if p.is_inference():
        with torch.inference_mode():
            p.requires_grad_(True)
    else:
        p.requires_grad_(True)


def _fold(m: nn.Module, undo: list[Undo]) -> None:
    """Make the module's normalised weights constants; of the older, hook-based interface by removing the hooks.

    Tensors that other hooks set at each call, as those of the older weight norm do, are restored afterwards.
    """
    if isinstance(m, ParametrizationList):
        if "forward" not in m.__dict__:  # else folded already, by a block around this one
            weight = m()
            undo.append(functools.partial(m.__dict__.pop, "forward", None))
            m.__dict__["forward"] = lambda: weight
        return
    hooks = m._forward_pre_hooks
    if hooks:
        tensors = {name: value for name, value in m.__dict__.items() if isinstance(value, Tensor)}
        undo.append(functools.partial(m.__dict__.update, tensors))
    norms = {key: hook for key, hook in hooks.items() if isinstance(hook, SpectralNorm)}
    if norms:
        undo.append(functools.partial(_restore, hooks, dict(hooks)))
    for key, hook in norms.items():
        setattr(m, hook.name, hook.compute_weight(m, do_power_iteration=False))
        del hooks[key]


def _restore(hooks: dict[int, Any], before: dict[int, Any]) -> None:
    hooks.clear()
    hooks.update(before)


class _Owner(NamedTuple):
    """The thread that owns an object, and its blocks; the object itself, so that its id is not reused."""

    thread: int
    blocks: set[object]
    thing: object


_owners: dict[int, _Owner] = {}
_released = threading.Condition()


@contextmanager
def exclusive(things: Sequence[object]) -> Iterator[None]:
    """Lock objects for this thread; other threads that lock one of them wait. Blocks of one thread may be nested.

    All are locked at once, so two blocks cannot deadlock; nested blocks of two threads can.
    """
    me, block = threading.get_ident(), object()

    def free() -> bool:
        return all(id(thing) not in _owners or _owners[id(thing)].thread == me for thing in things)

    def release() -> None:
        with _released:
            for thing in things:
                owner = _owners.get(id(thing))
                if owner is not None:
                    owner.blocks.discard(block)
                    if not owner.blocks:
                        del _owners[id(thing)]
            _released.notify_all()

    try:
        with _released:
            _released.wait_for(free)
            for thing in things:
                _owners.setdefault(id(thing), _Owner(me, set(), thing)).blocks.add(block)
        yield
    finally:
        always_undo([release])
