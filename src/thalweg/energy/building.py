"""Energies that are built for data of a shape: from a spec, or from what a Python caller gives in its place."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from thalweg.core.config import TRUSTED, build, class_at, takes
from thalweg.core.errors import UserError, kind_of


def from_spec(spec: Any, path: str, shape: tuple[int, ...], *, trusted: tuple[str, ...] = TRUSTED) -> Any:
    """What a spec describes, built with `shape=` where its constructor takes it, as all of this package's do."""
    extra: dict[str, Any] = {}
    if isinstance(spec, Mapping) and "type" in spec:
        cls = class_at(spec["type"], f"{path}.type", trusted=trusted)
        extra = {"shape": shape} if _takes_shape(cls) else {}
    return build(spec, path, trusted=trusted, **extra)


def from_object(energy: Any, shape: tuple[int, ...]) -> nn.Module:
    """The module that is given, or that a class or a `functools.partial` builds; UserError for anything else."""
    if isinstance(energy, nn.Module):
        return energy
    if not (inspect.isclass(energy) or isinstance(energy, functools.partial)):
        text = f"must be a module, or a class or functools.partial that builds one, not {kind_of(energy)}"
        raise UserError(text, argument="energy")
    bound = energy.keywords if isinstance(energy, functools.partial) else {}
    make = energy.func if isinstance(energy, functools.partial) else energy
    extra = {"shape": shape} if _takes_shape(make) and "shape" not in bound else {}
    try:
        module = energy(**extra)
    except UserError as error:
        raise error.within("energy") from error
    except (TypeError, ValueError) as error:
        hint = "give the module itself, or bind its arguments by functools.partial"
        raise UserError(f"cannot be built ({error})", argument="energy", hint=hint) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"must build a module, not {kind_of(module)}", argument="energy")
    return module


def _takes_shape(make: Any) -> bool:
    own = not inspect.isclass(make) or make.__init__ is not nn.Module.__init__  # which takes any keyword, to refuse it
    return own and takes(make, "shape")
