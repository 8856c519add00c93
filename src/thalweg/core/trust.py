"""Packages of others whose classes a config may name.

There are two ways in, and both need a person who trusts the package's code. An installed distribution declares it by an
entry point of the group `thalweg.components`, whose value is the package (`my_plugin = "my_plugin"`). Or the user names
it for one call: `--trust my_package`, `trust=("my_package",)`, `with trusting("my_package")`. Nothing is imported here.
"""

import functools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from thalweg.core.check import stated
from thalweg.core.errors import UserError

GROUP = "thalweg.components"
_NAME = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*", re.ASCII)
# Not written as components: a config that may name their classes could start processes or write files.
_NEVER = {
    *(*sys.stdlib_module_names, "thalweg", "torch", "numpy", "scipy", "sklearn", "pandas", "pyarrow", "narwhals"),
    *("matplotlib", "PIL", "tensorboard", "huggingface_hub", "safetensors", "pydantic", "yaml", "typer", "click"),
    *("rich", "dateutil", "jaxtyping", "mlxtend", "pip", "setuptools", "pkg_resources"),
}
_named: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


@contextmanager
def trusting(*packages: str) -> Iterator[None]:
    """A context in which configs may name classes of these packages too.

    A module in the current folder is found by its name too, as long as the context lasts, where no other has that name.

    Args:
        packages: Names of packages or modules, `my_package` or `my_package.nets`.

    Raises:
        UserError: A name of no importable package, or of one that is not a package of components, such as `os`.
    """
    finders = [finder for name in packages if (finder := _checked(name)) is not None]
    token = _named.set((*_named.get(), *packages))
    sys.meta_path.extend(finders)
    try:
        yield
    finally:
        _named.reset(token)
        for finder in finders:
            sys.meta_path.remove(finder)


def as_names(trust: Sequence[str]) -> tuple[str, ...]:
    """The names that an argument `trust` gives; UserError for one text, whose letters are none."""
    if isinstance(trust, str) or not isinstance(trust, Sequence):
        hint = 'write it as trust=("my_package",)'
        raise UserError("must be a list of names of packages", argument="trust", value=stated(trust), hint=hint)
    return tuple(trust)


def trusted_packages() -> tuple[str, ...]:
    """The packages of the contexts around this call, and those that installed distributions declare."""
    return (*_named.get(), *_declared(tuple(sys.path), os.getcwd()))


def may_be_trusted(module: str) -> bool:
    """Whether a user may trust the package of a module at all."""
    return _NAME.fullmatch(module) is not None and module.partition(".")[0] not in _NEVER


def package_folder(name: str) -> Path:
    """The folder of a package, `my_plugin`, or of one inside it, `my_plugin.recipes`. Nothing is imported."""
    top, *inner = name.split(".")
    spec = find_spec(top) if _NAME.fullmatch(name) and may_be_trusted(name) else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in (Path(folder, *inner) for folder in folders):
        if folder.is_dir():
            return folder
    raise UserError("no such package with recipes", argument="recipe", value=name, hint="write PACKAGE:NAME")


@functools.cache
def _declared(path: tuple[str, ...], here: str) -> tuple[str, ...]:
    """Packages that the metadata of installed distributions declare; what may not be trusted is left out.

    Metadata in the current folder are not looked at: a folder that somebody sent is no installation.
    """
    from importlib.metadata import distributions  # which takes longer to import than all the rest of this module

    installed = [folder for folder in path if Path(folder).resolve() != Path(here).resolve()]
    entries = (entry for found in distributions(path=installed) for entry in found.entry_points)
    values = (entry.value.partition(":")[0].strip() for entry in entries if entry.group == GROUP)
    return tuple(sorted({value for value in values if may_be_trusted(value)}))


def _checked(name: object) -> "_InFolder | None":
    """UserError unless that is a package that may be trusted; its finder where it lies in the current folder alone."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        hint = "write my_package, or my_package.module"
        raise UserError("must be the name of a package", argument="trust", value=stated(name), hint=hint)
    if not may_be_trusted(name):
        what = "must be a package of components: Python's own, torch's and other libraries' are not trusted"
        raise UserError(what, argument="trust", value=name, hint="name the package that defines your classes")
    top = name.partition(".")[0]
    if top in sys.modules or find_spec(top) is not None:
        return None
    finder = _InFolder(top, str(Path.cwd()))
    if finder.find_spec(top) is None:
        hint = "install it, or go to the folder where it lies"
        raise UserError("no package of that name can be imported", argument="trust", value=name, hint=hint)
    return finder


class _InFolder:
    """Finds one module or package of a folder, and nothing else that lies there."""

    def __init__(self, name: str, folder: str):
        self.name, self.folder = name, folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How to import the module of that name; None for any other."""
        return PathFinder.find_spec(fullname, [self.folder]) if fullname == self.name and path is None else None
