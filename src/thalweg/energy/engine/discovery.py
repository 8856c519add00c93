"""The modules that an energy contains.

An energy is any callable. Its network may be a field of a wrapper, an attribute of an object, a variable of a closure
or an argument of a partial. Global names and computed names are not followed.
"""

import functools
import itertools
import sys
from collections import deque
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

MOST_ITEMS = 1000  # of a container: longer ones hold data
MOST_VISITS = 10_000
_PLAIN = (Tensor, str, bytes, int, float, complex, bool, type, ModuleType, CodeType, type(None))
_FOREIGN = {*sys.stdlib_module_names, "torch", "numpy", "pandas", "polars", "sklearn", "matplotlib"} - {"types"}


def find_modules(energy: object) -> list[nn.Module]:
    """The modules in an energy and those inside them, each once.

    Searches attributes, containers of up to 1,000 items, partials, bound methods, and the closures and default
    arguments of functions. Not searched: global names, and objects of other libraries.
    """
    found: dict[nn.Module, None] = {}
    visited: dict[int, object] = {}  # keeps the objects, so that no id is reused
    todo = deque([energy])
    while todo and len(visited) < MOST_VISITS:
        thing = todo.popleft()
        if isinstance(thing, _PLAIN) or id(thing) in visited:
            continue
        visited[id(thing)] = thing
        if isinstance(thing, nn.Module):
            found |= dict.fromkeys(thing.modules())
        else:
            todo.extendleft(reversed(_inside(thing)))
    return list(found)


def device_of(energy: object) -> torch.device:
    """The device of an energy's first parameter or buffer; the CPU where it has none."""
    modules = [energy] if isinstance(energy, nn.Module) else find_modules(energy)
    tensors = itertools.chain.from_iterable(itertools.chain(m.parameters(), m.buffers()) for m in modules)
    return next((t.device for t in tensors), torch.device("cpu"))


def _inside(thing: object) -> list[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values()) if len(thing) <= MOST_ITEMS else []
    if isinstance(thing, tuple | list | set | frozenset | deque):
        return list(thing) if len(thing) <= MOST_ITEMS else []
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        return _captured(thing)
    return _attributes(thing)


def _attributes(thing: object) -> list[Any]:
    kind = type(thing)
    if kind.__module__.partition(".")[0] in _FOREIGN:
        return []
    declared = [c.__dict__.get("__slots__", ()) for c in kind.__mro__]
    slots = [name for names in declared for name in ((names,) if isinstance(names, str) else names)]
    found = [getattr(thing, name, None) for name in slots if not name.startswith("__")]
    call = next((c.__dict__["__call__"] for c in kind.__mro__ if "__call__" in c.__dict__), None)
    return [*getattr(thing, "__dict__", {}).values(), *found, call]


def _captured(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    return [*found, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
