"""A program as a graph of torch's elementary operations whose number of rows is open.

`torch.export` turns `len(x)` into a plain number, and energies ask for it everywhere. So a program is traced twice,
with two numbers of rows. A whole number in the graph that is the same in both is a size of the model; one that grows
with the rows is put down as that many times their number; anything else says that rows depend on each other, and is
refused.
Gradients are traced through autograd, and the gradient of a convolution becomes a transposed convolution.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from thalweg.bundle.exportable import Program
from thalweg.core.errors import UserError
from thalweg.energy.engine.attention import double_backward

COUNTS = (5, 7)  # rows of the two tracings
aten = torch.ops.aten


def open_rows(program: Program, examples: Sequence[Sequence[Tensor]]) -> fx.GraphModule:
    """The graph; `examples`: inputs with `COUNTS` rows each. UserError, by name, for what cannot be traced."""
    try:
        first, second = (_traced(program.module, inputs) for inputs in examples)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        text = f"cannot be traced as a graph ({str(error).splitlines()[0]:.120})"
        raise UserError(text, argument=f"graph {program.name!r}", hint="export the others") from error
    _match(program, first, second)
    first.graph.eliminate_dead_code()
    first.recompile()
    return first


def exported(program: Program, module: nn.Module, tensors: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The traced module as torch's own exchange form, the number of rows open."""
    rows = torch.export.Dim("rows", min=1)
    dynamic = tuple({0: rows} if spec.shape else None for spec in program.inputs)
    return torch.export.export(module, tuple(tensors), dynamic_shapes=dynamic, strict=False)


def _traced(module: nn.Module, inputs: Sequence[Tensor]) -> fx.GraphModule:
    module(*inputs)  # what it keeps from its first call is no part of the graph
    table: Any = {
        aten.convolution_backward.default: _convolution_backward,
        **core_aten_decompositions(),
    }
    with double_backward():  # attention as products and a softmax
        return make_fx(lambda *x: module(*x), decomposition_table=table, tracing_mode="real")(*inputs)


def _convolution_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradient in the input alone: no graph has gradients of weights."""
    if any(output_mask[1:]):
        return NotImplemented
    if transposed:
        given = (None, stride, padding, dilation, False, [0] * len(stride), groups)
        return aten.convolution(g, weight, *given), None, None
    size = zip(x.shape[2:], g.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in size]  # rows that no window reached
    return aten.convolution(g, weight, None, stride, padding, dilation, True, rest, groups), None, None


def _match(program: Program, a: fx.GraphModule, b: fx.GraphModule) -> None:
    """Put the number of rows in the place of the sizes in `a` that grow with it, as `b` shows."""
    nodes, others = list(a.graph.nodes), list(b.graph.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in others]:
        raise _refused(program, "its operations depend on the number of rows")
    first = next(n for n in nodes if n.op == "placeholder" and _is_rows(n))
    with a.graph.inserting_before(next(n for n in nodes if n.op != "placeholder")):
        rows = a.graph.call_function(aten.sym_size.int, (first, 0))
    for node, other in zip(nodes, others, strict=True):
        if node.op == "get_attr":
            same = _attribute(a, node.target).shape == _attribute(b, other.target).shape
            if not same:
                raise _refused(program, "a constant of it has the number of rows")
            continue
        with a.graph.inserting_before(node):
            sized = _sized(program, a.graph, rows)
            node.args = _both(node.args, other.args, sized)
            node.kwargs = _both(node.kwargs, other.kwargs, sized)


def _is_rows(node: fx.Node) -> bool:
    value = node.meta.get("tensor_meta")
    return value is not None and len(value.shape) > 0 and value.shape[0] == COUNTS[0]


def _sized(program: Program, graph: fx.Graph, rows: fx.Node) -> Callable[[Any, Any], Any]:
    def sized(x: Any, y: Any) -> Any:
        if isinstance(x, fx.Node | bool) or x is None or x == y or (x != x and y != y):  # two NaN are alike
            return x
        times, left = divmod(x, COUNTS[0]) if isinstance(x, int) else (0, 1)
        if left or y != times * COUNTS[1]:
            raise _refused(program, "a row's output depends on the others")
        return rows if times == 1 else graph.call_function(operator.mul, (rows, times))

    return sized


def _both(x: Any, y: Any, change: Callable[[Any, Any], Any]) -> Any:
    """`change` of each pair of entries of two alike trees."""
    if isinstance(x, dict):
        return {key: _both(value, y[key], change) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)([_both(p, q, change) for p, q in zip(x, y, strict=True)])
    return change(x, y)


def _attribute(module: nn.Module, name: str) -> Any:
    return operator.attrgetter(name)(module)


def _refused(program: Program, why: str) -> UserError:
    return UserError(f"cannot be exported: {why}", argument=f"graph {program.name!r}", hint="export the others")
