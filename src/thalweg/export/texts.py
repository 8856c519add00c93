"""Texts of an ONNX graph: inputs of categories as STRING tensors, encoded in the graph by ai.onnx.ml's LabelEncoder."""

from typing import Any

import numpy as np

from thalweg.bundle.exportable import Program

ML_OPSET = 3


def encode_texts(model: Any, program: Program) -> None:
    """Put an encoder before each input of codes, in the model itself; the input keeps its name and takes texts."""
    from onnx import TensorProto, helper

    encoders, taken = [], {value.name for value in model.graph.input}
    taken |= {name for node in model.graph.node for name in (*node.input, *node.output)}
    for value in model.graph.input:
        known = program.categories.get(value.name)
        if known is None:
            continue
        codes = f"/codes/{value.name}"
        while codes in taken:
            codes = f"/{codes}"
        taken.add(codes)
        for node in model.graph.node:
            node.input[:] = [codes if name == value.name else name for name in node.input]
        value.type.tensor_type.elem_type = TensorProto.STRING
        encoders.append(
            helper.make_node(
                "LabelEncoder",
                [value.name],
                [codes],
                domain="ai.onnx.ml",
                keys_strings=list(known.codes),
                values_int64s=np.array(list(known.codes.values()), np.int64).tolist(),
                default_int64=known.unknown,
            )
        )
    if not encoders:
        return
    nodes = [*encoders, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
