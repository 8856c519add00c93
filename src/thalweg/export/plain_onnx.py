"""A module of plain tensor operations as an ONNX graph, each operation one or two nodes, in a second.

`torch.onnx.export` takes half a minute for a detector of tables, and rounds plain numbers to float32. A detector's
module uses few operations, so that they are translated one by one: `OPERATIONS` lists them.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import Scope

OPSET = 18


def traced(module: nn.Module, examples: Sequence[Tensor]) -> fx.GraphModule:
    """The operations of a module's forward; each node's value for the examples is in its `meta["value"]`."""
    tracer = fx.Tracer()
    tracer.root, tracer.graph, tracer.tensor_attrs, tracer.submodule_paths = module, fx.Graph(), {}, None
    tracer.scope, tracer.module_stack, tracer.node_name_to_scope = Scope("", None), OrderedDict(), {}
    inputs = [tracer.create_proxy("placeholder", f"in{i}", (), {}) for i in range(len(examples))]
    outputs = module.forward(*inputs)
    tracer.create_node("output", "output", (tracer.create_arg(outputs),), {})
    made = fx.GraphModule(module, tracer.graph)
    _Valued(made).run(*examples)
    return made


class _Valued(fx.Interpreter):
    """Keeps each node's value, for its type and its number of dimensions."""

    def run_node(self, n: fx.Node) -> Any:
        n.meta["value"] = super().run_node(n)
        return n.meta["value"]


class OnnxGraph:
    """Nodes and constants of a graph that is being made, none of which gets one of the names that are `taken`."""

    def __init__(self, module: fx.GraphModule, taken: Collection[str] = ()):
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper, self._taken = helper, numpy_helper, frozenset(taken)
        self.module, self.nodes, self.constants, self._count = module, [], {}, 0

    def node(self, kind: str, *inputs: Any, like: Tensor | None = None, outputs: int = 1, **attributes: Any) -> str:
        """The name of a new node's first output; inputs that are no names are constants, numbers of the type `like`."""
        names = [value if isinstance(value, str) else self.constant(value, like) for value in inputs]
        found = [self._name() for _ in range(outputs)]
        self.nodes.append(self._helper.make_node(kind, names, found, **attributes))
        return found[0]

    def constant(self, value: Any, like: Tensor | None = None) -> str:
        """The name of a constant, kept once where it is small."""
        if isinstance(value, Tensor):
            array = value.detach().cpu().numpy()
        else:
            array = np.array(value, like.numpy().dtype if like is not None else None)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else id(value)
        if key not in self.constants:
            made = self._numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), self._name())
            self.constants[key] = made
        return self.constants[key].name

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """The value in another type."""
        number = self._helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
        return self.node("Cast", name, to=number)

    def _name(self) -> str:
        while True:
            self._count += 1
            if (name := f"/{self._count}") not in self._taken:
                return name


def translate(module: nn.Module, examples: Sequence[Tensor], inputs: Sequence[str]) -> tuple[OnnxGraph, list[str]]:
    """The graph, and the names of its outputs. NotImplementedError for an operation that is none of `OPERATIONS`."""
    graph = OnnxGraph(made := traced(module, examples), inputs)
    names: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in made.graph.nodes:
        if node.op == "placeholder":
            names[node] = next(given)
        elif node.op == "get_attr":
            names[node] = graph.constant(node.meta["value"])
        elif node.op == "output":
            return graph, [names[value] for value in node.args[0]]
        else:
            names[node] = _operation(node)(graph, node, *_named(node.args, names), **_named(node.kwargs, names))
    raise AssertionError("a traced graph ends with its output")


def _named(value: Any, names: dict[fx.Node, Any]) -> Any:
    return map_aggregate(value, lambda part: names[part] if isinstance(part, fx.Node) else part)


def _operation(node: fx.Node) -> Callable[..., Any]:
    name = node.target if isinstance(node.target, str) else node.target.__name__
    if name not in OPERATIONS:
        raise NotImplementedError(f"{name}: no operation of a plain graph")
    return OPERATIONS[name]


def _like(node: fx.Node) -> Tensor:
    """The value whose type plain numbers of an operation have: its first tensor of numbers."""
    values = [a.meta["value"] for a in node.args if isinstance(a, fx.Node)]
    return next((v for v in values if v.dtype != torch.bool), values[0])


def _simple(kind: str) -> Callable[..., str]:
    def made(graph: OnnxGraph, node: fx.Node, *inputs: Any) -> str:
        return graph.node(kind, *inputs, like=_like(node))

    return made


def _reduced(kind: str, *, as_input: bool = False) -> Callable[..., str]:
    """A sum or an extreme along one axis; ReduceSum has its axes as an input, and since opset 18 the others too."""

    def made(graph: OnnxGraph, node: fx.Node, x: str, dim: int, *, keepdim: bool = False) -> str:
        return graph.node(kind, x, np.array([dim], np.int64), keepdims=int(keepdim))

    return made


def _all(graph: OnnxGraph, node: fx.Node, x: str, dim: int) -> str:
    least = graph.node("ReduceMin", graph.cast(x, torch.int32), np.array([dim], np.int64), keepdims=0)
    return graph.cast(least, torch.bool)


def _item(graph: OnnxGraph, node: fx.Node, x: Any, index: Any) -> str:
    """x[i] of several outputs, or x with new axes."""
    if isinstance(x, tuple):
        return x[index]
    axes = [i for i, part in enumerate(index) if part is None]
    if Ellipsis in index:
        axes = [i - len(index) for i in axes]
    assert all(part is None or part is Ellipsis or part == slice(None) for part in index), index
    return graph.node("Unsqueeze", x, np.array(axes, np.int64))


def _gather(graph: OnnxGraph, node: fx.Node, table: str, *index: Any) -> str:
    return graph.node("Gather", table, index[-1], axis=0)


def _topk(graph: OnnxGraph, node: fx.Node, x: str, k: int, *, dim: int) -> tuple[str]:
    return (graph.node("TopK", x, np.array([k], np.int64), axis=dim, outputs=2),)


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _simple(kind)
        for name, kind in {
            "add": "Add",
            "sub": "Sub",
            "mul": "Mul",
            "truediv": "Div",
            "neg": "Neg",
            "matmul": "MatMul",
            "le": "LessOrEqual",
            "lt": "Less",
            "gt": "Greater",
            "ge": "GreaterOrEqual",
            "eq": "Equal",
            "and_": "And",
            "or_": "Or",
            "invert": "Not",
            "minimum": "Min",
            "maximum": "Max",
            "exp": "Exp",
            "log": "Log",
            "sqrt": "Sqrt",
            "abs": "Abs",
            "where": "Where",
            "clamp_min": "Max",
        }.items()
    },
    "square": lambda graph, node, x: graph.node("Mul", x, x),
    "amax": _reduced("ReduceMax"),
    "sum": _reduced("ReduceSum"),
    "mean": _reduced("ReduceMean"),
    "all": _all,
    "argmin": lambda graph, node, x, dim: graph.node("ArgMin", x, axis=dim, keepdims=0),
    "topk": _topk,
    "take": _gather,
    "index_select": _gather,
    "getitem": _item,
    "squeeze": lambda graph, node, x, dim: graph.node("Squeeze", x, np.array([dim], np.int64)),
    "cat": lambda graph, node, parts, dim: graph.node("Concat", *parts, axis=dim),
    "stack": lambda graph, node, parts, dim: graph.node(
        "Concat", *(graph.node("Unsqueeze", part, np.array([dim], np.int64)) for part in parts), axis=dim
    ),
    "to": lambda graph, node, x, dtype: graph.cast(x, dtype),
    "double": lambda graph, node, x: graph.cast(x, torch.float64),
}
