"""The two formats: a program as bytes of a file, and the file's bytes as something that runs."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from thalweg.bundle.exportable import Arrays, Program
from thalweg.bundle.servable import TensorSpec
from thalweg.core.errors import UserError, one_line
from thalweg.export.check import Run
from thalweg.export.plain_onnx import OPSET
from thalweg.export.tracing import COUNTS, exported, open_rows

FORMATS = ("onnx", "pt2")
IR_VERSION = 10  # of a file of opset 18, read by ONNX Runtime from 1.18 on
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require(format: str) -> None:
    """UserError for an unknown format, and where a package of the extra is missing."""
    if format not in FORMATS:
        raise UserError("must be onnx or pt2", argument="--format", value=format)
    missing = [name for name in NEEDED if find_spec(name) is None] if format == "onnx" else []
    if missing:
        text = f"needs the package {missing[0]}"
        raise UserError(text, argument="--format onnx", hint="pip install 'thalweg[export]' brings it")


def prepared(program: Program, format: str, example: Callable[[int], Arrays]) -> torch.nn.Module:
    """The module that a file is made of, traced where need be; `example` gives so many rows of inputs.

    UserError, by name, for a program that has no graph.
    """
    if format == "onnx" and not all(spec.name for spec in program.inputs):
        hint = "rename the column and fit again, or say --format pt2"
        raise UserError("must have a name, as inputs of ONNX have", argument="column ''", hint=hint)
    if program.plain and format == "onnx":
        return program.module
    return open_rows(program, [program.tensors(example(n)) for n in COUNTS])


def written(program: Program, module: torch.nn.Module, format: str, example: Arrays, about: Mapping[str, Any]) -> bytes:
    """The file; `example`: a few rows of inputs, `about`: what it says of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it will change
        return (_onnx if format == "onnx" else _pt2)(program, module, program.tensors(example), about)


def loaded(data: bytes, program: Program, format: str) -> Run:
    """The file's bytes as a function of arrays, computed by ONNX Runtime or torch on one thread."""
    return _onnx_run(data, program) if format == "onnx" else _pt2_run(data, program)


def _onnx(program: Program, module: torch.nn.Module, tensors: list[torch.Tensor], about: Mapping[str, Any]) -> bytes:
    from onnx import checker

    from thalweg.export.texts import encode_texts

    made = plain(program, tensors) if program.plain else by_torch(program, module, tensors)
    encode_texts(made, program, inner_prefix(program))
    made.ir_version = IR_VERSION
    made.producer_name = "thalweg"
    for key, value in about.items():
        entry = made.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        checker.check_model(made, full_check=True)
    except checker.ValidationError as error:
        text = f"cannot be written as ONNX ({one_line(error):.120})"
        hint = "rename a column that is called as a node of the graph is, or say --format pt2"
        raise UserError(text, argument=f"graph {program.name!r}", hint=hint) from error
    return made.SerializeToString()


def plain(program: Program, tensors: list[torch.Tensor]) -> Any:
    """The model of a program of plain operations; UserError, by name, for one that it has beside them."""
    from onnx import helper

    from thalweg.export.plain_onnx import translate

    prefix = inner_prefix(program)
    try:
        graph, names = translate(program.module, tensors, [spec.name for spec in program.inputs], prefix)
    except NotImplementedError as error:
        text = f"cannot be written as ONNX ({error})"
        raise UserError(text, argument=f"graph {program.name!r}", hint="say --format pt2") from error
    for name, spec in zip(names, program.outputs, strict=True):
        graph.nodes.append(helper.make_node("Identity", [name], [spec.name]))
    inputs = [_value(spec, coded=spec.name in program.categories) for spec in program.inputs]
    outputs = [_value(spec) for spec in program.outputs]
    made = helper.make_graph(graph.nodes, program.name, inputs, outputs, list(graph.constants.values()))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])


def inner_prefix(program: Program) -> str:
    """What the names of values inside a graph begin with: slashes, one more than any input or output begins with."""
    names = [spec.name for spec in (*program.inputs, *program.outputs)]
    return "/" * (1 + max(len(name) - len(name.lstrip("/")) for name in names))


def _value(spec: TensorSpec, *, coded: bool = False) -> Any:
    from onnx import TensorProto, helper

    kinds = {
        "BOOL": TensorProto.BOOL,
        "UINT8": TensorProto.UINT8,
        "INT64": TensorProto.INT64,
        "FP32": TensorProto.FLOAT,
        "FP64": TensorProto.DOUBLE,
        "BYTES": TensorProto.INT64 if coded else TensorProto.STRING,
    }
    return helper.make_tensor_value_info(spec.name, kinds[spec.datatype], ["rows", *spec.shape[1:]])


def by_torch(program: Program, module: Any, tensors: list[torch.Tensor]) -> Any:
    """The model of any other program, by torch's own exporter."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # names torchvision's
    made = torch.onnx.export(
        exported(program, module, tensors),
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=OPSET,
    )
    assert made is not None
    model = made.model_proto  # made anew at each access
    _widen_places(model.graph)
    _rename(model.graph, program)
    return model


def _rename(graph: Any, program: Program) -> None:
    """Name the inputs and outputs as the program does.

    torch's own naming fails where a column has a name of torch's, such as `cat`, and where an output is an input.
    """
    from onnx import helper

    prefix, inputs = inner_prefix(program), [value.name for value in graph.input]
    names = dict(zip(inputs, (spec.name for spec in program.inputs), strict=True))

    def name(old: str) -> str:
        return names.get(old, prefix + old) if old else ""  # an empty name is an input that is left out

    for node in graph.node:
        node.input[:], node.output[:] = map(name, node.input), map(name, node.output)
    for value in (*graph.input, *graph.value_info, *graph.initializer):
        value.name = name(value.name)
    for value, spec in zip(graph.output, program.outputs, strict=True):
        graph.node.append(helper.make_node("Identity", [name(value.name)], [spec.name]))
        value.name = spec.name


def _widen_places(graph: Any) -> None:
    """Give each ScatterND its places in int64, as ONNX wants them; torch writes those that a buffer holds in int32."""
    from onnx import TensorProto, helper

    nodes = []
    for node in graph.node:
        if node.op_type == "ScatterND":
            wide = f"{node.input[1]}/{len(nodes)}/int64"
            nodes.append(helper.make_node("Cast", [node.input[1]], [wide], to=TensorProto.INT64))
            node.input[1] = wide
        nodes.append(node)
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _onnx_run(data: bytes, program: Program) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in program.outputs]

    def run(rows: Arrays) -> dict[str, np.ndarray]:
        found: Any = session.run(names, {s.name: rows[s.name] for s in program.inputs})
        return dict(zip(names, found, strict=True))

    return run


def _pt2(program: Program, module: torch.nn.Module, tensors: list[torch.Tensor], about: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    text = json.dumps(dict(about), ensure_ascii=False)
    torch.export.save(exported(program, module, tensors), file, extra_files={"thalweg.json": text})
    return file.getvalue()


def _pt2_run(data: bytes, program: Program) -> Run:
    module = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def run(rows: Arrays) -> dict[str, np.ndarray]:
        found = module(*program.tensors(rows))
        return {spec.name: part.numpy() for spec, part in zip(program.outputs, found, strict=True)}

    return run
