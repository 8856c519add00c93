"""Recipes: YAML files of this package, another one or the user that describe a run."""

import re
from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from thalweg.core.errors import UserError, one_line, shown, suggestion
from thalweg.core.trust import package_folder


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file (plain data only: no tags, no aliases, no repeated keys)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise UserError(f"cannot be read ({reason})", argument=str(path)) from err
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"must be a mapping of keys to values; it is {shown(tree)}", argument=str(path))
    return tree


def read_recipe(name: str) -> dict[str, Any]:
    """The recipe of that name in this package, or the YAML file at that path when it ends in .yaml.

    `my_plugin:moons` is the file moons.yaml in the folder of the package `my_plugin`, which is not imported.
    `base: NAME` in a recipe extends one of this package; its sections replace those of the base.
    """
    tree = _recipe_alone(name)
    if "base" not in tree:
        return tree
    base = tree.pop("base")
    if not isinstance(base, str) or base.endswith((".yaml", ".yml")):
        want = "must be the name of a recipe in the package, such as pcd-image"
        raise UserError(want, argument=f"{name}: base", value=base)
    known = {path.stem for path in _folder().glob("*.yaml")}
    if base not in known:
        raise UserError("no such recipe", argument=f"{name}: base", value=base, hint=suggestion(base, known))
    return {**read_recipe(base), **tree}


def _folder() -> Path:
    return Path(str(files("thalweg"))) / "recipes"


def _recipe_alone(name: str) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        return load_yaml(name)
    package, colon, own = name.rpartition(":")
    folder = package_folder(package) if colon else _folder()
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if colon and own not in known:
        raise UserError(f"no such recipe in {package}", argument="recipe", value=name, hint=suggestion(own, known))
    if own not in known:
        near = f"{suggestion(name, known)}, or give the path of a .yaml file"
        raise UserError("no such recipe", argument="recipe", value=name, hint=near)
    return load_yaml(folder / f"{own}.yaml")


CLOSING = {"[": "]", "{": "}", '"': '"', "'": "'"}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses aliases (bombs, cycles) and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$", re.ASCII),
    list("-+.0123456789"),
)


def _left_open(text: str, error: yaml.MarkedYAMLError) -> str | None:
    """The bracket or the quote that is open where a text ends; None for other errors."""
    begun, end = error.context_mark, error.problem_mark
    if begun is None or end is None or end.index < len(text.rstrip()) or begun.index >= len(text):
        return None
    return text[begun.index] if text[begun.index] in CLOSING else None


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; UserError at `source` and the line."""
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as err:
        line = f" line {err.problem_mark.line + 1}" if err.problem_mark else ""
        if (opened := _left_open(text, err)) is not None:
            hint = f"close it with {CLOSING[opened]}"
            what = "bracket" if opened in "[{" else "quote"
            raise UserError(f"the {what} {opened} is not closed", argument=f"{source}{line}", hint=hint) from err
        raise UserError(str(err.problem or err.context), argument=f"{source}{line}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise UserError(f"not readable as YAML ({one_line(err)})", argument=source) from err
