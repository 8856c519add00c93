"""Checks of a spec's values against the types that a constructor declares.

Numbers, words and lists are checked strictly (`true` is no count, "3" no number, 2.5 no integer). Where the type is a
Protocol, the value must have its methods. Other annotations are left to the constructor.
"""

import json
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from thalweg.core.check import stated
from thalweg.core.errors import UserError, kind_of

_CONFIG = ConfigDict(arbitrary_types_allowed=True)
_WANTED = {  # by pydantic's types of faults
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "missing": "a longer list",
    "too_long": "a shorter list",
    "too_short": "a longer list",
    "dict_type": "a mapping",
    "is_instance_of": "an object, which a config cannot hold",
}


def check_types(cls: type, values: Mapping[str, Any]) -> None:
    """UserError, whose `argument` is the key, for the first value that is not of its declared type."""
    try:
        hints = get_type_hints(cls.__init__)
    except Exception:  # of a type in quotes, which may be anything
        return
    for key, value in values.items():
        if key in hints:
            wanted = _fault(hints[key], value)
            if wanted and _plain(value):
                raise UserError(f"must be {wanted}", argument=key, value=stated(value))
            if wanted:
                raise UserError(f"must be {wanted}, not {kind_of(value)}", argument=key)


def _fault(hint: Any, value: Any) -> str | None:
    """The type that is wanted instead of the value, None where no fault is found."""
    methods = _methods(hint)
    if methods and value is not None:
        if _plain(value):
            return "a part, as in {type: package.module:ClassName}"
        lacks = [name for name in methods if not callable(getattr(value, name, None))]
        return f"a part with the method {lacks[0]}" if lacks else None
    if not _plain(value):
        return None
    try:
        TypeAdapter(hint, config=_CONFIG).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        where = next((part for part in fault["loc"] if isinstance(part, int)), None)
        what = _WANTED.get(fault["type"]) or f"of its type ({fault['msg']})"
        return what if where is None else f"{what} at index {where}"
    except (PydanticUserError, SchemaError, TypeError):  # no type that can be checked
        return None
    return None


def _methods(hint: Any) -> list[str]:
    """The public methods of a protocol, or of one in a union; [] for any other type."""
    union = get_origin(hint) in (Union, UnionType)
    for part in get_args(hint) if union else (hint,):
        origin = getattr(part, "__origin__", part)
        if getattr(origin, "_is_protocol", False):
            return [name for name, member in vars(origin).items() if callable(member) and not name.startswith("_")]
    return []


def _plain(value: Any) -> bool:
    """Whether JSON holds it, infinities aside."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and not math.isnan(value))
