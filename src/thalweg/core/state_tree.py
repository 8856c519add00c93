"""Trees of state (dicts, lists, tuples, numbers, texts, tensors) as named tensors and a structure that JSON holds."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from thalweg.core.errors import DamagedFile, ThalwegError, UserError, kind_of
from thalweg.core.store import REMEDY

if TYPE_CHECKING:
    from torch import Tensor


def flatten(tree: Any) -> tuple[dict[str, "Tensor"], Any]:
    """Split a tree into named tensors and a structure that JSON holds exactly.

    A tree is made of dicts (with scalar keys, such as the integers of `optimizer.state_dict()`), lists,
    tuples, NamedTuples, tensors, None, bool, int, float and str. Sub-classes come back as their base.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _flatten(tree, (), tensors)


def unflatten(tensors: Mapping[str, "Tensor"], structure: Any, like: Any = None) -> Any:
    """The tree that `flatten` took apart.

    A NamedTuple comes back as its own class where `like`, a tree of the same form, has one at that place
    (field names must agree; later ones that have defaults may be missing, as from before they were added), and as a
    plain tuple elsewhere: a file never chooses a class.
    """
    try:
        return _unflatten(tensors, structure, like)
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as err:
        if isinstance(err, ThalwegError):
            raise
        raise DamagedFile(f"the stored structure does not fit its tensors ({err!r})", hint=REMEDY) from err


def mapped(f: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A tree of tuples and NamedTuples with f of what is at each place of it, and at that of others of its form."""
    if not isinstance(tree, tuple):
        return f(tree, *others)
    parts = [mapped(f, *each) for each in zip(tree, *others, strict=True)]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def _flatten(tree: Any, path: tuple[str, ...], tensors: dict[str, "Tensor"]) -> Any:
    from torch import Tensor

    if isinstance(tree, Tensor):
        name = "/".join(path) or "value"
        while name in tensors or name == "__metadata__":
            name += "'"  # the keys 0 and "0" would share a name
        tensors[name] = tree
        return {"tensor": name}
    if tree is None or isinstance(tree, bool | int | str):
        return tree
    if isinstance(tree, float):
        return float(tree) if math.isfinite(tree) else {"float": repr(float(tree))}
    if isinstance(tree, list):
        return [_flatten(part, (*path, str(i)), tensors) for i, part in enumerate(tree)]
    if isinstance(tree, tuple):
        fields = list(getattr(tree, "_fields", ()))
        parts = zip(fields or map(str, range(len(tree))), tree, strict=True)
        return {"tuple": [_flatten(part, (*path, name), tensors) for name, part in parts], "fields": fields}
    if isinstance(tree, dict) and all(key is None or isinstance(key, bool | int | str) for key in tree):
        return {"dict": [[key, _flatten(part, (*path, str(key)), tensors)] for key, part in tree.items()]}
    kind = f"a dict with the keys {list(tree)}" if isinstance(tree, dict) else kind_of(tree)
    raise UserError(f"{kind} cannot be stored without pickle", argument=".".join(path) or "the tree")


def _unflatten(tensors: Mapping[str, "Tensor"], node: Any, like: Any) -> Any:
    if isinstance(node, list):
        return [_unflatten(tensors, part, _at(like, i)) for i, part in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "float" in node:
        return float(node["float"])
    if "dict" in node:
        return {key: _unflatten(tensors, part, _at(like, key)) for key, part in node["dict"]}
    parts = [_unflatten(tensors, part, _at(like, i)) for i, part in enumerate(node["tuple"])]
    stored, fields = node["fields"], getattr(like, "_fields", None)
    if not stored or not fields:
        return tuple(parts)
    if list(fields[: len(stored)]) != stored or not set(fields[len(stored) :]) <= set(like._field_defaults):
        raise UserError(f"has the fields {', '.join(fields)}, stored are {stored}", argument=type(like).__name__)
    return type(like)(*parts)


def _at(like: Any, key: Any) -> Any:
    if isinstance(like, dict):
        return like.get(key)
    return like[key] if isinstance(like, list | tuple) and type(key) is int and key < len(like) else None
