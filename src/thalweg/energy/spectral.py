"""Spectral normalisation that never advances inside a sampling chain.

W_sn = W / sigma(W), with sigma estimated by power iteration (Miyato et al. 2018). The iteration belongs to
the optimiser step: in train mode every forward pass advances it, so a chain run in train mode samples from an
energy that changes under its feet and pays for the iteration at each step. `frozen` is the remedy: evaluation
mode, weights folded once.
"""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm

E = TypeVar("E")
M = TypeVar("M", bound=nn.Module)


def normalise(layer: M, on: bool = True) -> M:
    """The layer with spectral normalisation of its weight, or as it is when `on` is false."""
    if on:
        spectral_norm(layer)
    return layer


def modules_of(energy: Any) -> Iterator[nn.Module]:
    """The modules that an energy evaluates.

    Looks through dataclass wrappers, tuples, lists, bound methods, partials and closures; a module that a
    plain function reaches through a global name is not found.
    """
    if isinstance(energy, nn.Module):
        yield energy
        return
    inside: list[Any] = []
    if isinstance(energy, type):
        return
    if dataclasses.is_dataclass(energy):
        inside = [getattr(energy, field.name) for field in dataclasses.fields(energy)]
    elif isinstance(energy, tuple | list):
        inside = list(energy)
    elif isinstance(energy, functools.partial):
        inside = [energy.func, *energy.args, *energy.keywords.values()]
    elif hasattr(energy, "__self__"):
        inside = [energy.__self__]
    elif getattr(energy, "__closure__", None):
        cells = [cell.cell_contents for cell in energy.__closure__]
        inside = [c for c in cells if callable(c) and c is not energy]
    for part in inside:
        yield from modules_of(part)


@contextmanager
def _fold_hook(layer: nn.Module) -> Iterator[None]:
    """Fold the older, hook-based spectral norm: compute the weight once, unhook it, put everything back."""
    hooks = layer._forward_pre_hooks
    found = {key: hook for key, hook in hooks.items() if isinstance(hook, SpectralNorm)}
    before, weights = list(hooks.items()), {hook.name: getattr(layer, hook.name) for hook in found.values()}
    for key, hook in found.items():
        setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=False))
        del hooks[key]
    try:
        yield
    finally:
        for name, weight in weights.items():
            setattr(layer, name, weight)
        if found:
            hooks.clear()
            hooks.update(before)


@contextmanager
def frozen(energy: E) -> Iterator[E]:
    """The same energy, held still: evaluation mode, normalised weights computed once, no parameter gradients.

    Works for both of torch's spectral-norm interfaces, for any other module, and for wrappers of modules; a
    plain callable passes through. Modes, gradient flags and hooks are restored on leaving, also after an
    exception. The folding uses `torch.nn.utils.parametrize.cached`, which is global to the process: do not
    train another parametrised module on another thread, nor open torch's own `cached()` around a `frozen`
    block.
    """
    modules = [m for root in modules_of(energy) for m in root.modules()]
    modes = [(m, m.training) for m in modules]
    wanted = [(p, p.requires_grad) for m in modules for p in m.parameters(recurse=False)]
    with ExitStack() as stack:
        stack.callback(_restore, modes, wanted)
        for m in modules:
            m.training = False
        for p, _ in wanted:
            p.requires_grad_(False)
        for m in modules:
            stack.enter_context(_fold_hook(m))
        stack.enter_context(parametrize.cached())
        yield energy


def _restore(modes: list[tuple[nn.Module, bool]], wanted: list[tuple[nn.Parameter, bool]]) -> None:
    for m, training in modes:
        m.training = training
    for p, requires_grad in wanted:
        p.requires_grad_(requires_grad)
