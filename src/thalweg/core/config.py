"""Configs of runs: nested mappings whose `type` names a class by its import path, `package.module:ClassName`.

A spec is checked against the constructor's own signature, so a new component needs no registry, and a misspelt key is
found before any work starts. Configs may come from strangers. So only a class that is defined in one of the packages of
components, or in another's package that is trusted (`core.trust`), is built: the path is checked before the import, and
the class's own module after it. `thalweg.energy.base:Tensor` is refused, since torch defines that class.
"""

import inspect
import math
import pkgutil
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

from thalweg.core.config_types import check_types
from thalweg.core.errors import NotTrusted, UserError, one_line, shown, suggestion
from thalweg.core.recipes import parse_yaml
from thalweg.core.trust import may_be_trusted, trusted_packages

TRUSTED = ("thalweg.energy", "thalweg.sampler", "thalweg.objective", "thalweg.data")  # packages of components
_PATH = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*:[A-Za-z]\w*", re.ASCII)
_DEPTH = 32
_INFINITE = {".inf": math.inf, "-.inf": -math.inf}  # as YAML spells them: JSON knows no infinity


def build(spec: Mapping[str, Any], path: str = "", /, *, trusted: tuple[str, ...] = TRUSTED, **extra: Any) -> Any:
    """The object that a spec describes, nested specs built first.

    A `ValueError` or `TypeError` of a constructor becomes a `UserError` with the key; any other error stays as it is.

    Args:
        spec: The spec.
        path: Its dotted key, for errors; without it they name the class.
        trusted: Packages whose classes may be built.
        extra: Keywords known only at run time, such as `shape`, for the outermost class; they replace the spec's.
    """
    if not _is_spec(spec):
        raise UserError("must be a spec, as in {type: package.module:ClassName}", argument=path or "spec", value=spec)
    return _build(spec, path, trusted, extra)


def check(spec: Any, path: str = "", *, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Raise a `UserError`, naming the dotted path, unless all specs in the tree can be built.

    Types must exist and be trusted, and keys be known. Missing keys pass: a caller may add them at run time.
    Nothing is built.
    """
    _check_depth(path)
    if _is_spec(spec):
        cls = class_at(spec["type"], _join(path, "type"), trusted=trusted)
        _check_keys(cls, (key for key in spec if key != "type"), path, spec["type"], complete=False)
    for key, value in _children(spec):
        check(value, _join(path, key), trusted=trusted)


def override(
    config: Mapping[str, Any], assignments: Sequence[str], *, trusted: tuple[str, ...] = TRUSTED
) -> dict[str, Any]:
    """A new config with each `a.b=value` applied; values are YAML, and `1e-3` is a number.

    A key must be in the config already, or be one that the spec at that path takes. `a.type=...` swaps the
    class and keeps the keywords that the new class also takes; it makes a spec of a number, a text or a key that is not
    given yet. Type changes apply first, outer ones before inner ones, whatever the order.
    """
    new = deepcopy(dict(config))
    pairs = [_parse_assignment(text) for text in assignments]
    for keys, value in sorted(pairs, key=lambda pair: len(pair[0]) if pair[0][-1] == "type" else math.inf):
        _assign(new, keys, value, trusted)
    return new


def plain(tree: Any, path: str = "") -> Any:
    """A copy that JSON holds: infinities as the texts `.inf` and `-.inf`, which `build` reads back; NaN is refused."""
    _check_depth(path)
    if isinstance(tree, Mapping):
        return {key: plain(part, _join(path, key)) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(part, _join(path, key)) for key, part in enumerate(tree)]
    if isinstance(tree, float) and math.isnan(tree):
        raise UserError("must be a number", argument=path, value=tree, hint="give one, or .inf")
    return {math.inf: ".inf", -math.inf: "-.inf"}.get(tree, tree) if isinstance(tree, float) else tree


def class_at(name: Any, key: str, *, trusted: tuple[str, ...] = TRUSTED) -> type:
    """The class at an import path; UserError at that key unless that module of a trusted package defines it.

    `trusted`: this package's own that may be named there. Others' are trusted anywhere, or nowhere.
    """
    if not names_class(name):
        raise UserError("must have the form package.module:ClassName", argument=key, value=name)
    module_name, _, class_name = name.partition(":")
    if not _under(module_name, trusted):
        trusted = (*trusted, *trusted_packages())
    if not _under(module_name, trusted):
        raise _untrusted(module_name, trusted, key, name)
    module = _module(module_name, key)
    cls = vars(module).get(class_name)
    if not inspect.isclass(cls):
        known = [known for known, value in vars(module).items() if _defined(value, known, trusted)]
        hint = suggestion(class_name, known)
        raise UserError(f"no class {class_name!r} in {module_name}", argument=key, value=name, hint=hint)
    if not _defined(cls, class_name, trusted):
        where = f"is refused: the class is defined in {cls.__module__}, not there"
        raise UserError(where, argument=key, value=name)
    return cls


def names_class(text: Any) -> bool:
    """Whether a text has the form package.module:ClassName."""
    return isinstance(text, str) and _PATH.fullmatch(text) is not None


def type_name(cls: Any) -> str:
    """How a config names a class (or a function that makes something): `package.module:ClassName`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def takes(make: Any, keyword: str) -> bool:
    """Whether a class or a function takes a keyword, by its name or among any others."""
    known, any_key = _parameters(make)
    return any_key or keyword in known


def is_foreign(tree: Any, path: str = "") -> bool:
    """Whether a spec in the tree names a class of another package than this one."""
    _check_depth(path)
    own = not _is_spec(tree) or str(tree["type"]).startswith("thalweg.")
    return not own or any(is_foreign(value, _join(path, key)) for key, value in _children(tree))


def _untrusted(module: str, trusted: tuple[str, ...], key: str, name: str) -> NotTrusted:
    package = module.partition(".")[0]
    hint = f'if you trust its code: --trust {package}, or trust=("{package}",) in Python'
    text = f"is refused: only classes of {', '.join(trusted)} may be built"
    return NotTrusted(text, argument=key, value=name, hint=hint if may_be_trusted(module) else None)


def _module(name: str, key: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as err:
        if err.name and not f"{name}.".startswith(f"{err.name}."):
            needs = f"{name} needs the package {err.name!r}"
            here = "" if name.startswith("thalweg.") else f", or trust it too where it lies here: --trust {err.name}"
            raise UserError(needs, argument=key, hint=f"pip install it first{here}") from err
        parent, _, last = name.rpartition(".")
        raise UserError(f"no module {name}", argument=key, hint=suggestion(last, _submodules(parent))) from err
    except (Exception, SystemExit) as err:
        if name.startswith("thalweg."):
            raise
        line = traceback.extract_tb(err.__traceback__)[-1]
        where = "" if isinstance(err, SyntaxError) else f", {Path(line.filename).name} line {line.lineno}"
        reason = f"{type(err).__name__}: {one_line(err)}{where}"
        raise UserError(f"{name} cannot be imported ({reason})", argument=key, hint="mend the module") from err


def _submodules(package: str) -> list[str]:
    try:
        return [info.name for info in pkgutil.iter_modules(import_module(package).__path__)]
    except (ImportError, ValueError, AttributeError):  # a module has no path
        return []


def _under(module: str, trusted: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(prefix.rstrip(".") + ".") for prefix in trusted if prefix.rstrip("."))


def _defined(value: Any, name: str, trusted: tuple[str, ...]) -> bool:
    """Whether this is a class of that name, defined in a trusted module and not imported into one."""
    return inspect.isclass(value) and _under(value.__module__, trusted) and value.__qualname__ == name


def _parameters(cls: Any) -> tuple[dict[str, bool], bool]:
    """Names of the constructor's keywords with whether each is required, and whether it takes any others."""
    kinds = inspect.Parameter
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (ValueError, TypeError):  # a class of C's making, such as an exception
        return {}, False
    named = (p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY))
    return {p.name: p.default is kinds.empty for p in named}, any(p.kind is kinds.VAR_KEYWORD for p in parameters)


def _check_keys(cls: type, keys: Iterable[Any], path: str, type_name: str, *, complete: bool) -> None:
    known, any_key = _parameters(cls)
    keys = list(keys)
    for key in keys:
        if not isinstance(key, str) or not (any_key or key in known):
            hint = suggestion(str(key), known)
            raise UserError(f"{type_name} takes no {key!r}", argument=_join(path, key), hint=hint)
    missing = [key for key, required in known.items() if required and key not in keys]
    if complete and missing:
        needs = f"{type_name} needs {', '.join(map(repr, missing))}, which the spec does not give"
        raise UserError(needs, argument=path or None)


def _build(spec: Mapping[str, Any], path: str, trusted: tuple[str, ...], extra: Mapping[str, Any]) -> Any:
    cls = class_at(spec["type"], _join(path, "type"), trusted=trusted)
    kwargs = {key: _realise(value, _join(path, key), trusted) for key, value in _children(spec)} | dict(extra)
    _check_keys(cls, kwargs, path, spec["type"], complete=True)
    where = path or cls.__name__
    try:
        check_types(cls, {key: value for key, value in kwargs.items() if key not in extra})
        return cls(**kwargs)
    except UserError as err:
        raise err.within(where) from err
    except Exception as err:
        ours = cls.__module__.startswith("thalweg.")
        if ours and not isinstance(err, ValueError | TypeError):
            raise
        kind = "" if ours else f"{type(err).__name__}: "
        raise UserError(f"{kind}{one_line(err)}", argument=where) from err


def _realise(value: Any, path: str, trusted: tuple[str, ...]) -> Any:
    """A copy of the tree with every spec in it built."""
    _check_depth(path)
    if _is_spec(value):
        return _build(value, path, trusted, {})
    if isinstance(value, Mapping):
        return {key: _realise(part, _join(path, key), trusted) for key, part in _children(value)}
    if type(value) in (list, tuple):
        return type(value)(_realise(part, _join(path, key), trusted) for key, part in _children(value))
    return _INFINITE.get(value, value) if isinstance(value, str) else value


def _check_depth(path: str) -> None:
    if path.count(".") > _DEPTH:
        raise UserError(f"must not be nested more than {_DEPTH} deep", argument=f"{path[:60]}...")


def _children(tree: Any) -> list[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        return [(key, value) for key, value in tree.items() if not (key == "type" and _is_spec(tree))]
    return list(enumerate(tree)) if type(tree) in (list, tuple) else []


def _is_spec(value: Any) -> bool:
    return isinstance(value, Mapping) and "type" in value


def _assign(config: dict[str, Any], keys: list[str], value: Any, trusted: tuple[str, ...]) -> None:
    node: Any = config
    for depth, key in enumerate(keys[:-1]):
        above, becomes_spec = node, _is_spec(node) and keys[depth + 1 :] == ["type"]
        key = _key(above, key, ".".join(keys[: depth + 1]), trusted, present=not becomes_spec)
        if becomes_spec and not isinstance(above.get(key), dict | list):
            above[key] = {"type": value}
        node = above[key]
    path, last = ".".join(keys), keys[-1]
    if last == "type" and _is_spec(node):
        kept, any_key = _parameters(class_at(value, _join(".".join(keys[:-1]), "type"), trusted=trusted))
        for key in [key for key in node if key != "type" and key not in kept and not any_key]:
            del node[key]
    else:
        check(value, path, trusted=trusted)
    node[_key(node, last, path, trusted, present=False)] = value


def _key(node: Any, key: str, path: str, trusted: tuple[str, ...], *, present: bool) -> Any:
    """The key or index in the node, which must have it or, unless `present`, whose class takes it."""
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return int(key)
    if not isinstance(node, dict):
        above = path.rpartition(".")[0]
        raise UserError(f"cannot be set, as {above!r} is {shown(node)}", argument=path)
    if key in node:
        return key
    known: list[str] = [str(name) for name in node]
    if _is_spec(node):
        named, any_key = _parameters(class_at(node["type"], _join(path.rpartition(".")[0], "type"), trusted=trusted))
        if not present and (any_key or key in named):
            return key
        known = ["type", *named] if key not in named else known
    raise UserError("no such key", argument=path, hint=suggestion(key, known))


def _parse_assignment(text: str) -> tuple[list[str], Any]:
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UserError("must be an assignment", argument=shown(text), hint="write it as section.key=value")
    if not value.strip():
        raise UserError("must have a value", argument=shown(text), hint=f"write {name}=null for none")
    return keys, parse_yaml(value, f"{name}=")


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
