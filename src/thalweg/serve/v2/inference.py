"""An inference request of the Open Inference Protocol, read from its bytes, and the response written to bytes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import to_json

from thalweg.bundle.servable import TensorSpec
from thalweg.serve.errors import HttpError, malformed
from thalweg.serve.inputs.conform import check_rows, check_values, conform, require_columns
from thalweg.serve.inputs.new_categories import warnings_of
from thalweg.serve.inputs.strict_json import parse_object
from thalweg.serve.models import ServedModel
from thalweg.serve.settings import ServeSettings
from thalweg.serve.v2 import tensors

LENGTH_HEADER = "Inference-Header-Content-Length"
KEYS = {"id", "parameters", "inputs", "outputs", "model_name"}  # the last, which the path says too, is kserve's
LONGEST_TIMEOUT = 10**12  # microseconds


class Wanted(NamedTuple):
    """An output that is asked for, and whether as bytes."""

    spec: TensorSpec
    binary: bool


class Inference(NamedTuple):
    """What a request says."""

    id: str | None
    rows: dict[str, np.ndarray]
    outputs: list[Wanted]
    alpha: float | None
    timeout: float | None  # seconds


def read(data: bytes, header: str | None, model: ServedModel, settings: ServeSettings) -> Inference:
    """The request in a body, whose JSON ends where the header says; 400 or 422 for anything else."""
    length = _length(header, len(data))
    try:
        value = parse_object(data[:length], settings.max_depth).value
    except HttpError as error:
        if header is None and b"binary_data_size" in data:
            raise malformed("must be there and say at which byte the JSON ends", LENGTH_HEADER) from error
        raise
    if extra := value.keys() - KEYS:
        raise malformed(f"must be one of {', '.join(sorted(KEYS))}", sorted(extra)[0][:80])
    name = value.get("id")
    if name is not None and not (isinstance(name, str) and len(name) <= 1000):
        raise malformed("must be a string of at most 1000 characters", "id")
    if value.get("model_name", model.name) != model.name:
        raise malformed(f"must be {model.name}, as in the path", "model_name")
    parameters = _parameters(value, "parameters")
    rows = _inputs(value.get("inputs"), memoryview(data)[length:], model, settings)
    wanted = _outputs(value.get("outputs"), model, _flag(parameters, "binary_data_output"))
    alpha, timeout = _number(parameters, "alpha"), _number(parameters, "timeout")
    if alpha is not None and not 0 < alpha <= 1:
        raise malformed("must be a number above 0 and at most 1", "alpha")
    if timeout is not None and not 0 < timeout <= LONGEST_TIMEOUT:
        raise malformed("must be a number of microseconds", "timeout")
    return Inference(name, rows, wanted, alpha, None if timeout is None else timeout / 1e6)


def write(model: ServedModel, asked: Inference, found: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
    """(the body, the length of its JSON where bytes follow)."""
    told, parts = [], []
    for spec, binary in asked.outputs:
        value = tensors.datatype_of(found[spec.name], spec)
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(value.shape)}
        if binary:
            parts.append(tensors.to_bytes(value))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = value.reshape(-1).tolist()
        told.append(entry)
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if asked.id is not None:
        head["id"] = asked.id
    warnings = warnings_of(model, asked.rows)
    if warnings:
        head["parameters"] = {"warnings": " ".join(warnings)}
    text = to_json({**head, "outputs": told})
    return (b"".join([text, *parts]), len(text)) if parts else (text, None)


def _length(header: str | None, size: int) -> int:
    """The bytes of JSON in a body of that size."""
    if header is None:
        return size
    if not (header.isascii() and header.isdigit() and len(header) < 19 and int(header) <= size):
        raise malformed(f"must be the bytes of JSON in the body, at most {size}", LENGTH_HEADER)
    return int(header)


def _inputs(inputs: Any, rest: memoryview, model: ServedModel, settings: ServeSettings) -> dict[str, np.ndarray]:
    if not isinstance(inputs, list) or not inputs or not all(isinstance(one, dict) for one in inputs):
        raise malformed("must be a list of tensors", "inputs")
    specs, found, at = {spec.name: spec for spec in model.inputs}, {}, 0
    for one in inputs:
        name = one.get("name")
        if not isinstance(name, str) or name in found:
            raise malformed("must have a name each, and each name once", "inputs")
        if extra := one.keys() - {"name", "shape", "datatype", "parameters", "data"}:
            raise malformed(f"must not have the key {sorted(extra)[0][:80]!r}", name[:80])
        shape, size = tensors.shape_of(one.get("shape"), name[:80]), _binary_size(one, name[:80])
        if size is None:
            found[name] = tensors.from_list(one.get("data"), one.get("datatype", ""), shape, name[:80])
            continue
        if at + size > len(rest):
            raise malformed(f"must have {size} bytes behind the JSON, and has {len(rest) - at}", name[:80])
        found[name] = tensors.from_bytes(rest[at : at + size], one.get("datatype", ""), shape, name[:80])
        at += size
    if at != len(rest):
        raise malformed(f"must have {at} bytes behind the JSON, as its inputs say, and has {len(rest)}", "inputs")
    require_columns(model.inputs, found)
    check_rows(len(found[model.inputs[0].name]), settings.max_batch, "inputs")
    rows = {name: conform(tensors.as_input(value, specs[name], model), specs[name]) for name, value in found.items()}
    check_values(model, rows)
    return rows


def _binary_size(one: dict[str, Any], name: str) -> int | None:
    """The bytes of an input that stand behind the JSON; None where its values are in it."""
    parameters = _parameters(one, name)
    if any(key.startswith("shared_memory") for key in parameters):
        raise malformed("must be sent in the request, as this service reads no shared memory", name)
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or not 0 <= size < tensors.LARGEST or "data" in one:
        raise malformed("must have either data or a binary_data_size, a number of bytes", name)
    return size


def _outputs(outputs: Any, model: ServedModel, binary: bool) -> list[Wanted]:
    specs = {spec.name: spec for spec in model.outputs}
    if outputs is None or outputs == []:
        return [Wanted(spec, binary) for spec in model.outputs]
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise malformed("must be a list of outputs", "outputs")
    found: list[Wanted] = []
    for one in outputs:
        name = one.get("name")
        if not isinstance(name, str) or name not in specs:
            raise malformed(f"must be named one of {', '.join(specs)}", "outputs")
        if one.keys() - {"name", "parameters"} or any(specs[name] == wanted.spec for wanted in found):
            raise malformed("must have a name, each once, and may have parameters", "outputs")
        parameters = _parameters(one, "outputs")
        if "classification" in parameters or any(key.startswith("shared_memory") for key in parameters):
            raise malformed("must be asked for without classification and shared memory", "outputs")
        found.append(Wanted(specs[name], _flag(parameters, "binary_data", binary)))
    return found


def _parameters(value: dict[str, Any], field: str) -> dict[str, Any]:
    """Parameters, which the protocol allows to be strings, numbers and booleans; unknown ones are passed over."""
    found = value.get("parameters")
    found = {} if found is None else found
    if not isinstance(found, dict) or any(isinstance(part, dict | list | None) for part in found.values()):
        raise malformed("must have parameters that are an object of strings, numbers and booleans", field)
    return found


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise malformed("must be true or false", name)
    return found


def _number(parameters: dict[str, Any], name: str) -> float | None:
    found = parameters.get(name)
    if found is None:
        return None
    if type(found) not in (int, float):
        raise malformed("must be a number", name)
    return float(found)
