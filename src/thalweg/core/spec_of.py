"""The spec of an object that a Python caller made: what `core.config.build` would make it from."""

import functools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from thalweg.core.config import type_name

PLAIN = (bool, int, float, str, type(None))


def spec_of(thing: Any) -> dict[str, Any]:
    """`type` and the fields of a dataclass, or the keywords of a `functools.partial`; of anything else the type alone.

    A value that JSON cannot hold is given by its type. Then the spec names the object and does not rebuild it.
    """
    if isinstance(thing, functools.partial):
        return {"type": type_name(thing.func), **{name: _value(value) for name, value in thing.keywords.items()}}
    if isinstance(thing, type):
        return {"type": type_name(thing)}
    values = {field.name: getattr(thing, field.name) for field in fields(thing) if field.init} if _holds(thing) else {}
    return {"type": type_name(type(thing)), **{name: _value(value) for name, value in values.items()}}


def _holds(thing: Any) -> bool:
    return is_dataclass(thing) and not isinstance(thing, type)


def _value(value: Any) -> Any:
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, list | tuple):
        return [_value(part) for part in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _value(part) for key, part in value.items()}
    return spec_of(value) if _holds(value) else {"type": type_name(type(value))}
