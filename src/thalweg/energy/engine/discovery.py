"""Which modules an energy holds, wherever it keeps them.

An energy is any callable, and the network may be a field of a wrapper, an attribute of an object, a variable of a
closure or an argument of a partial. What only a name leads to, global or computed, is not searched: a name is no sign
that the energy evaluates what it stands for.
"""

import functools
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

MOST_ITEMS = 1000  # of a container: longer ones hold data
MOST_VISITS = 10_000
_PLAIN = (Tensor, str, bytes, int, float, complex, bool, type, ModuleType, CodeType, type(None))
_FOREIGN = {*sys.stdlib_module_names, "torch", "numpy", "pandas", "polars", "sklearn", "matplotlib"} - {"types"}


def find_modules(energy: Any) -> list[nn.Module]:
    """The modules that an energy holds and those inside them, each once.

    Looks into wrappers and other objects' attributes, containers of up to 1,000 items, partials, bound methods, and
    functions' closures and default arguments. Global names are not followed, nor what objects of other libraries keep.
    """
    found: dict[nn.Module, None] = {}
    seen: dict[int, Any] = {}  # holds what it has seen, so that no number is given twice
    todo = deque([energy])
    while todo and len(seen) < MOST_VISITS:
        thing = todo.popleft()
        if isinstance(thing, _PLAIN) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            found |= dict.fromkeys(thing.modules())
        else:
            todo.extendleft(reversed(_inside(thing)))
    return list(found)


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values()) if len(thing) <= MOST_ITEMS else []
    if isinstance(thing, tuple | list | set | frozenset | deque):
        return list(thing) if len(thing) <= MOST_ITEMS else []
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        return _held_by(thing)
    return _attributes(thing)


def _attributes(thing: Any) -> list[Any]:
    kind = type(thing)
    if kind.__module__.partition(".")[0] in _FOREIGN:
        return []
    slots = [name for c in kind.__mro__ for name in _names(c.__dict__.get("__slots__", ()))]
    found = [getattr(thing, name, None) for name in slots if not name.startswith("__")]
    call = next((c.__dict__["__call__"] for c in kind.__mro__ if "__call__" in c.__dict__), None)
    return [*getattr(thing, "__dict__", {}).values(), *found, call]


def _names(slots: Any) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _held_by(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    return [*found, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
