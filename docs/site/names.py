"""The public names of the package, read from its sources: modules, and what each defines."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "src" / "thalweg"
LONGEST = 100  # characters of a value that a page shows


class Name(NamedTuple):
    """A public name of a module: `kind` is class, function or data; of data also the value and the line's comment."""

    name: str
    kind: str
    value: str = ""
    comment: str = ""


class Module(NamedTuple):
    """A public module: its dotted name, whether it is a package, its first sentence, and what it defines."""

    name: str
    is_package: bool
    summary: str
    names: tuple[Name, ...]


@functools.cache
def modules() -> list[Module]:
    """Every module whose path has no leading underscore, a package before what it holds."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        if parts[-1] == "__main__" or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        text = path.read_text("utf-8")
        tree = ast.parse(text)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        first = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
        found.append(Module(name, is_package, first, tuple(defined(tree, text.splitlines()))))
    return sorted(found, key=lambda module: module.name.split("."))


def first_use() -> dict[str, str]:
    """The names that `import thalweg` offers, each with the module that defines it."""
    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NAMES":
            return dict(sorted(ast.literal_eval(node.value).items()))
    raise LookupError("_NAMES")


def defined(tree: ast.Module, lines: list[str]) -> Iterator[Name]:
    """The names without a leading underscore that a module defines, in order; of a name defined twice the first."""
    seen = {"log"}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = [Name(node.name, "class" if isinstance(node, ast.ClassDef) else "function")]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found = list(data_of(node, lines))
        else:
            continue
        for name in found:
            if not name.name.startswith("_") and name.name not in seen:
                seen.add(name.name)
                yield name


def data_of(node: ast.Assign | ast.AnnAssign, lines: list[str]) -> Iterator[Name]:
    """The names that a statement binds, with the value if it is short, and the comment at the end of its line."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    leaves = [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
    one_line = node.lineno == node.end_lineno and node.value is not None and len(leaves) == 1
    value = ast.unparse(node.value) if one_line and node.value is not None else ""
    end = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset or 0 :].decode()
    comment = end.partition("# ")[2].strip()
    for name in leaves:
        yield Name(name, "data", value if len(value) <= LONGEST else "", comment)
