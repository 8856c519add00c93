"""JSON schemas of rows, predictions and errors, for a model as it is: its shapes, columns and labels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.bundle.servable import Classifies, TensorSpec
from thalweg.serve.inputs.truths import texts_of_true_and_false
from thalweg.serve.models import ServedModel
from thalweg.serve.v2.tensors import DTYPES

Schema = dict[str, Any]
LARGEST = {"FP32": float(np.finfo(np.float32).max), "FP64": float(np.finfo(np.float64).max)}
NUMBER: Schema = {"type": "number"}
STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
WHOLE: Schema = {"type": "integer"}
PIXEL: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def obj(properties: Schema, optional: Sequence[str] = (), **more: Any) -> Schema:
    """An object with these keys and no other."""
    required = [name for name in properties if name not in optional]
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | ({"required": required} if required else {}) | more


def listed(item: Schema, size: int | None = None, most: int | None = None) -> Schema:
    """An array: of `size` items, or of one to `most`."""
    if size is not None:
        return {"type": "array", "items": item, "minItems": size, "maxItems": size}
    return {"type": "array", "items": item, "minItems": 1} | ({} if most is None else {"maxItems": most})


def nested(shape: Sequence[int], item: Schema) -> Schema:
    """Arrays in arrays."""
    for size in reversed(shape):
        item = listed(item, size)
    return item


def instances(model: ServedModel, most: int) -> Schema:
    """Rows as JSON has them."""
    spec, content = model.inputs[0], model.servable.content
    if content == "text":
        return listed(STRING, most=most)
    if content == "image":
        return listed(image(spec), most=most)
    if content == "table":
        truths = (
            {c.name for c in model.columns.columns if c.truth or texts_of_true_and_false(c)} if model.columns else set()
        )
        cells = {one.name: cell(one, truth=one.name in truths) for one in model.inputs}
        row = obj({name: {} for name in model.ignored} | cells, optional=[*model.ignored])
        return listed(row, most=most) | {"description": "Lists of values in the order of the columns are taken too."}
    return listed(nested(spec.shape[1:], bounded(spec)), most=most)


def image(spec: TensorSpec) -> Schema:
    """An image: nested lists, or base64 of uint8."""
    shape = spec.shape[1:]
    return {"anyOf": [nested(shape, PIXEL), base64_image(shape)]}


def base64_image(shape: Sequence[int]) -> Schema:
    """{"shape", "data"} of uint8 in that shape."""
    whole, rest = divmod(math.prod(shape), 3)
    letters = 4 * whole + (rest + 1 if rest else 0)
    pattern = f"^[A-Za-z0-9+/]{{{letters}}}{'=' * (3 - rest) if rest else ''}$"
    return obj({"shape": {"const": list(shape)}, "data": {"type": "string", "pattern": pattern}})


def bounded(spec: TensorSpec) -> Schema:
    """A number that the datatype holds."""
    largest = LARGEST.get(spec.datatype)
    return NUMBER if largest is None else {"type": "number", "minimum": -largest, "maximum": largest}


def cell(spec: TensorSpec, *, truth: bool = False) -> Schema:
    """A value of a column, of true and false where `truth`; null where it is missing."""
    if spec.datatype == "BYTES":
        return {"type": ["string", *(["boolean"] if truth else []), "null"]}
    return bounded(spec) | {"type": ["number", *(["boolean"] if truth else []), "null"]}


def example_row(model: ServedModel) -> Any:
    """A row of the right form."""
    spec, content = model.inputs[0], model.servable.content
    if content == "text":
        return "text"
    if content == "table":
        return {one.name: "a" if one.datatype == "BYTES" else 0.0 for one in model.inputs}
    return np.zeros(spec.shape[1:]).tolist()


def output(spec: TensorSpec) -> Schema:
    """An output of one row."""
    item = BOOLEAN if spec.datatype == "BOOL" else NUMBER if spec.datatype.startswith("FP") else WHOLE
    return nested(spec.shape[1:], item)


def scores(model: ServedModel) -> dict[str, Schema]:
    """All outputs of one row by name."""
    return {spec.name: output(spec) for spec in model.outputs}


def array(shape: Sequence[int]) -> Schema:
    """Numbers as lists, or packed into uint8 with the lowest and the highest of them."""
    packed = obj({"shape": listed(WHOLE), "data": STRING, "low": NUMBER, "high": NUMBER})
    return {"anyOf": [nested(shape, NUMBER), packed]}


def reasons(model: ServedModel) -> dict[str, Schema]:
    """What is explained of one row, by name."""
    content, value = model.servable.content, {"type": ["number", "string", "boolean", "null"]}
    if content == "image":
        shape = model.inputs[0].shape[1:]
        return {"map": array(shape[1:]), "repaired": array(shape)}
    if content == "text":
        letter = obj({"place": WHOLE, "letter": STRING, "surprise": NUMBER, "expected": STRING})
        listed_as = {"type": "array", "items": letter}
        texts = {"text": STRING, "surprise": {"type": "array", "items": NUMBER}, "reasons": listed_as}
        return texts | {"repair": STRING, "repair_energy": NUMBER, "edits": {"type": "array", "items": STRING}}
    return {"reasons": listed(obj({"feature": STRING, "share": NUMBER, "value": value, "repair": value}))}


def drawn(model: ServedModel) -> Schema:
    """Rows that were drawn."""
    spec, content = model.inputs[0], model.servable.content
    if content == "text":
        return listed(STRING)
    if content == "table":
        values = {one.name: STRING if one.datatype == "BYTES" else NUMBER for one in model.inputs}
        return listed(obj(values | dict.fromkeys(model.truths, BOOLEAN)))
    lists = listed(nested(spec.shape[1:], NUMBER))
    return lists if content == "rows" else {"anyOf": [lists, obj({"shape": listed(WHOLE), "data": STRING})]}


def classes(model: ServedModel) -> list[Schema]:
    """How a class may be named: by its number, as a number or a text, or by its name. None without classes."""
    names = names_of_classes(model)
    if not names:
        return []
    numbers = [*map(str, range(len(names)))]
    known = [*dict.fromkeys([*names, *numbers])]
    return [{"type": "integer", "minimum": 0, "maximum": len(names) - 1}, {"enum": known}]


def names_of_classes(model: ServedModel) -> list[str]:
    """Those that answers have."""
    return list(model.servable.labels) if isinstance(model.servable, Classifies) else []


def classified(model: ServedModel) -> Schema:
    """The label of one row, and all probabilities."""
    labels = names_of_classes(model)
    return obj({"label": {"enum": labels}, "probabilities": obj(dict.fromkeys(labels, NUMBER))})


def predictions(model: ServedModel, of_row: Schema, **more: Schema) -> Schema:
    """An answer of a plain route about rows; of a table with categories it may have warnings."""
    head: Schema = {"model": {"const": model.name}, "version": {"const": model.version}}
    if model.has_categories:
        head["warnings"] = listed(STRING)
    return obj({**head, **more, "predictions": of_row}, optional=("warnings",))


def tensor(spec: TensorSpec) -> Schema:
    """An input of the protocol; `data` has as many values as `shape` says."""
    values = {"type": "array", "items": {"type": ["number", "boolean", "string", "array", "null"]}}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 8}
    properties = {"name": {"const": spec.name}, "datatype": {"enum": list(DTYPES)}, "shape": shape, "data": values}
    return obj({**properties, "parameters": parameters()}, optional=("data", "parameters"))


def parameters() -> Schema:
    """Parameters of the protocol."""
    return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


def metadata(specs: Sequence[TensorSpec]) -> Schema:
    """Names, datatypes and shapes of tensors."""
    parts = {"name": {"enum": [s.name for s in specs]}, "datatype": {"enum": list(DTYPES)}, "shape": listed(WHOLE)}
    return listed(obj(parts), len(specs))


def error() -> Schema:
    """An error of a plain route."""
    return obj({"code": STRING, "field": {"type": ["string", "null"]}, "message": STRING})
