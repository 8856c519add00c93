"""Which modules an energy evaluates, and whose turn it is to hold them still.

An energy is any callable, and the network may be anywhere in it: a field of a wrapper, an attribute of an object, a
closure's variable, a default argument, a global name. What a chain does not find it cannot hold still: its dropout
draws, its spectral norm moves at each step. So the search follows whatever Python code can name.
"""

import dis
import functools
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

MOST_ITEMS = 1000  # of a container: longer ones hold data
MOST_VISITS = 10_000
_PLAIN = (Tensor, str, bytes, int, float, complex, bool, type, ModuleType, CodeType, type(None))
_FOREIGN = {*sys.stdlib_module_names, "torch", "numpy", "pandas", "polars", "sklearn", "matplotlib"} - {"types"}


def modules_of(energy: Any) -> Iterator[nn.Module]:
    """The modules that an energy evaluates, each once.

    Looks through wrappers, objects' attributes, containers of up to 1,000 items, bound methods, partials, and what
    functions read: closures, default arguments, global names. What is reached by a computed name is not found, nor what
    objects of other libraries keep, unless they are modules.
    """
    seen: dict[int, Any] = {}  # holds what it has seen, so that no number is given twice
    todo = deque([energy])
    while todo and len(seen) < MOST_VISITS:
        thing = todo.popleft()
        if isinstance(thing, _PLAIN) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            yield thing
        else:
            todo.extendleft(reversed(_inside(thing)))


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
        return _read_by(thing)
    bound = getattr(thing, "__self__", None)  # a method of compiled code
    return [*_attributes(thing), *([] if bound is None else [bound])]


def _attributes(thing: Any) -> list[Any]:
    kind = type(thing)
    if kind.__module__.partition(".")[0] in _FOREIGN:
        return []
    slots = [name for c in kind.__mro__ for name in _names(c.__dict__.get("__slots__", ()))]
    found = [getattr(thing, name, None) for name in slots if not name.startswith("__")]
    call = kind.__dict__.get("__call__")
    return [*getattr(thing, "__dict__", {}).values(), *found, *([call] if isinstance(call, FunctionType) else [])]


def _names(slots: Any) -> Sequence[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _read_by(function: FunctionType) -> list[Any]:
    if function.__module__ is not None and function.__module__.partition(".")[0] in ("torch", "numpy"):
        names: Sequence[str] = ()  # their globals are no networks, their closures may be
    else:
        names = _globals_of(function.__code__)
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    return [*found, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


@functools.lru_cache(maxsize=1024)
def _globals_of(code: CodeType) -> tuple[str, ...]:
    """The global names that a function reads, and the functions written inside it."""
    own = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _globals_of(const)]
    return tuple(dict.fromkeys([*own, *inner]))


_free = threading.Condition()
_taken: dict[int, tuple[nn.Module, int, int]] = {}  # the module, the thread that has it, how many times


@contextmanager
def turn(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The modules for this thread alone: another that wants one of them waits. A thread may ask again for its own.

    For what changes a module for a while in ways that two threads cannot share.
    """
    me, wanted, mine = threading.get_ident(), {id(m): m for m in modules}, False
    try:
        with _free:
            _free.wait_for(lambda: all(_taken.get(key, (None, me))[1] == me for key in wanted))
            mine = True
            for key, m in wanted.items():
                _taken[key] = (m, me, _taken[key][2] + 1 if key in _taken else 1)
        yield
    finally:
        if mine:
            with _free:
                for key, (m, who, times) in [(key, _taken.pop(key)) for key in wanted if key in _taken]:
                    if times > 1:
                        _taken[key] = (m, who, times - 1)
                _free.notify_all()
