"""Objects of the classes that the modules of a package define: a new module is found, and no list names it."""

import functools
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from inspect import isclass
from typing import Any, TypeVar

from thalweg.core.errors import UserError

T = TypeVar("T")


def instances(package: str, base: type[T]) -> list[T]:
    """One object of each public class over `base` in the modules of a package, in the order of the modules' names.

    Not looked at: the module that defines `base`, and those whose name begins with an underscore. UserError for a
    module without such a class, and for a class that leaves out a method or an attribute that `base` wants.
    """
    return _instances(package, tuple(import_module(package).__path__), base)


def by_name(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """The objects by their names; UserError where two have one name."""
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            both = " and ".join(_title(type(one)) for one in (found[name], value))
            raise UserError(f"{both} have one name", argument=name, hint="rename one of them")
        found[name] = value
    return found


@functools.cache
def _instances(package: str, path: tuple[str, ...], base: type[Any]) -> list[Any]:
    found = []
    for info in pkgutil.iter_modules(path, f"{package}."):
        if info.name == base.__module__ or info.name.rpartition(".")[2].startswith("_"):
            continue
        own = [cls for cls in vars(import_module(info.name)).values() if _is_own(cls, info.name, base)]
        if not own:
            raise UserError(f"must define a public class over {base.__name__}", argument=info.name)
        for cls in own:
            _require_whole(cls, base)
            found.append(cls())
    return found


def _is_own(value: object, module: str, base: type) -> bool:
    return isclass(value) and issubclass(value, base) and value.__module__ == module and value.__name__[0] != "_"


def _require_whole(cls: type, base: type) -> None:
    wanted = {name for parent in cls.__mro__ for name in vars(parent).get("__annotations__", ())}
    lacks = sorted({*getattr(cls, "__abstractmethods__", ()), *(name for name in wanted if not hasattr(cls, name))})
    if lacks:
        hint = f"{base.__module__} says what they are"
        raise UserError(f"lacks {', '.join(lacks)}", argument=_title(cls), hint=hint)


def _title(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"
