"""Modules of a user's making that take each number for itself, as `x * torch.sigmoid(x)`; told from their source.

Such a module may be given images in any layout, and stands between convolutions without breaking their row
(`energy.engine.fused`). It counts only if its `forward` is one `return` of arithmetic of its one argument: + - * / **,
the functions below, numbers, and attributes that are numbers. The source is read, never run.
"""

import ast
import functools
import inspect
import textwrap
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

_NAMES = (
    *("abs", "celu", "clamp", "cos", "elu", "erf", "exp", "expm1", "gelu", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log1p", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "sin", "softplus", "softsign"),
    *("sqrt", "square", "tanh", "tanhshrink"),
)
FUNCTIONS = {getattr(place, name) for place in (torch, F) for name in _NAMES if hasattr(place, name)}


class _Source(NamedTuple):
    """What the source says: the attributes that are read, and whether it is x sigmoid(x)."""

    attributes: frozenset[str]
    is_silu: bool


def is_pointwise(m: nn.Module) -> bool:
    """Whether each number of the module's result is a function of that number of its input."""
    source = _read(type(m))
    return source is not None and all(isinstance(getattr(m, name, None), int | float) for name in source.attributes)


def is_silu(m: nn.Module) -> bool:
    """Whether the module is x sigmoid(x), written out."""
    source = _read(type(m))
    if source is None or not source.is_silu:
        return False
    x = torch.linspace(-8, 8, 33, device="cpu")
    return torch.allclose(m(x), F.silu(x), atol=1e-6)


@functools.cache
def _read(kind: type[nn.Module]) -> _Source | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    if not isinstance(tree, ast.FunctionDef) or tree.decorator_list or tree.args.vararg or tree.args.kwarg:
        return None
    names = tree.args.posonlyargs + tree.args.args + tree.args.kwonlyargs
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    if len(names) != 2 or len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
        return None
    reader = _Reader(names[0].arg, names[1].arg, kind.forward.__globals__)
    if not reader.takes(body[0].value) or not reader.uses_x:
        return None
    return _Source(frozenset(reader.attributes), reader.is_silu(body[0].value))


class _Reader:
    """Whether expressions of `x` and numbers are taken."""

    def __init__(self, myself: str, x: str, names: dict[str, Any]):
        self.myself, self.x, self.names = myself, x, names
        self.attributes: set[str] = set()
        self.uses_x = False

    def takes(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=self.x):
                self.uses_x = True
                return True
            case ast.Constant(value=int() | float()):
                return True
            case ast.Attribute(value=ast.Name(id=self.myself), attr=name):
                self.attributes.add(name)
                return True
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=inner):
                return self.takes(inner)
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow(), left=left, right=right):
                return self.takes(left) and self.takes(right)
            case ast.Call(func=func, args=args, keywords=keywords):
                method = isinstance(func, ast.Attribute) and func.attr in _NAMES and self.takes(func.value)
                known = method or self._named(func) in FUNCTIONS
                return known and all(self.takes(a) for a in (*args, *(k.value for k in keywords)))
        return False

    def is_silu(self, node: ast.expr) -> bool:
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
            return False
        sides = {ast.dump(node.left), ast.dump(node.right)}
        calls = [side for side in (node.left, node.right) if isinstance(side, ast.Call) and len(sides) == 2]
        x = ast.dump(ast.Name(self.x, ast.Load()))
        return x in sides and any(_is_sigmoid(call, x) for call in calls)

    def _named(self, node: ast.expr) -> Any:
        """The function of a module that is named, as torch.sigmoid; None for anything else."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id) if node.id not in (self.x, self.myself) else None
        if isinstance(node, ast.Attribute) and isinstance(place := self._named(node.value), ModuleType):
            return getattr(place, node.attr, None)
        return None


def _is_sigmoid(call: ast.Call, x: str) -> bool:
    of = [ast.dump(a) for a in call.args] or [ast.dump(call.func.value) if isinstance(call.func, ast.Attribute) else ""]
    func = call.func
    name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
    return name == "sigmoid" and of == [x] and not call.keywords
