"""Spectral normalisation that never advances inside a sampling chain.

W_sn = W / sigma(W), with sigma estimated by power iteration (Miyato et al. 2018). The iteration belongs to
the optimiser step: in train mode every forward pass advances it, so a chain run in train mode samples from an
energy that changes under its feet and pays for the iteration at each step. `frozen` is the remedy: evaluation
mode, weights folded once.
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
    """Take changes back, the last one first; all of them again if Ctrl-C or another error came between.

    Each may be called twice, and before its change was made.
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

    Works for both of torch's spectral-norm interfaces, for any other module, and for what holds modules
    (`energy.engine.discovery.find_modules`); a callable without modules passes through. Modes, gradient flags and hooks
    are restored on leaving, also after an exception. The modules are this thread's meanwhile (`exclusive`); blocks may
    be nested. Do not train the modules inside, nor open torch's own `parametrize.cached()` around the block.
    """
    modules = find_modules(energy)
    parameters = list({id(p): p for m in modules for p in m.parameters(recurse=False)}.values())
    undo: list[Undo] = []
    with exclusive([*modules, *parameters]):
        try:
            for m in modules:
                _evaluate(m, undo)
            for p in parameters:
                _hold_constant(p, undo)
            for m in modules:
                _fold(m, undo)
            yield energy
        finally:
            always_undo(undo)


def _evaluate(m: nn.Module, undo: list[Undo]) -> None:
    if m.training:
        undo.append(functools.partial(setattr, m, "training", True))
        m.training = False


def _hold_constant(p: nn.Parameter, undo: list[Undo]) -> None:
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
    """The module's normalised weights as constants; by the older, hook-based interface without the hooks.

    What hooks set anew at each call, as those of the older weight norm do, is put back as it was.
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
        undo.append(functools.partial(_put_back, hooks, dict(hooks)))
    for key, hook in norms.items():
        setattr(m, hook.name, hook.compute_weight(m, do_power_iteration=False))
        del hooks[key]


def _put_back(hooks: dict[int, Any], before: dict[int, Any]) -> None:
    hooks.clear()
    hooks.update(before)


class _Owner(NamedTuple):
    """Who has a thing: a thread, in how many blocks; the thing itself, so that its number is not given again."""

    thread: int
    blocks: set[object]
    thing: Any


_owners: dict[int, _Owner] = {}
_given_back = threading.Condition()


@contextmanager
def exclusive(things: Sequence[Any]) -> Iterator[None]:
    """The things for this thread alone; a thread that wants one of them waits. Blocks of one thread may be nested.

    All are taken at once, so two blocks do not wait for each other; two nests of blocks may.
    """
    me, block = threading.get_ident(), object()

    def free() -> bool:
        return all(id(thing) not in _owners or _owners[id(thing)].thread == me for thing in things)

    def give_back() -> None:
        with _given_back:
            for thing in things:
                owner = _owners.get(id(thing))
                if owner is not None:
                    owner.blocks.discard(block)
                    if not owner.blocks:
                        del _owners[id(thing)]
            _given_back.notify_all()

    try:
        with _given_back:
            _given_back.wait_for(free)
            for thing in things:
                _owners.setdefault(id(thing), _Owner(me, set(), thing)).blocks.add(block)
        yield
    finally:
        always_undo([give_back])
