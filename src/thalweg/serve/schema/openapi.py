"""The description at /openapi.json: FastAPI's list of routes and parameters, with bodies and answers filled in.

Bodies are read by this package itself, so FastAPI does not know them; and they depend on the models that are served. A
route that no model can answer is left out.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from thalweg.serve.inputs.body import CSV, JSON, NPY, PICTURES
from thalweg.serve.models import Models, ServedModel
from thalweg.serve.schema import parts
from thalweg.serve.schema.parts import Schema, listed, obj
from thalweg.serve.settings import ServeSettings
from thalweg.serve.v1.requests import InpaintRequest, SampleRequest

NDJSON = "application/x-ndjson"
METHODS = ("get", "post")
BEARER = "bearer"
BINARY: Schema = {"type": "string", "format": "binary"}
WRONG = {
    400: "The request is not of the form that the route reads",
    403: "Another host or origin",
    404: "No such model, or no such version",
    408: "The body came too slowly",
    413: "Too many bytes, rows or pixels",
    415: "A content type that the route does not read",
    422: "The form is right, and the model cannot take what it says",
    429: "The queue is full; Retry-After says when to come again",
    500: "The service failed; its log says why",
    503: "The service is loading or draining; Retry-After says when to come again",
    504: "The deadline has passed",
}
OF_READING = (400, 403, 404, 500, 503)  # of a GET


def described(app: FastAPI, models: Models, settings: ServeSettings) -> Schema:
    """The description of an application."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        description="Scores, reasons, draws and completions of energy-based models.",
    )
    schemas: dict[str, Schema] = {"Error": parts.error(), "ProtocolError": obj({"error": parts.STRING})}
    paths = {path: methods for path, methods in found["paths"].items() if _served(path, models)}
    for path, methods in paths.items():
        for method in METHODS:
            if method in methods:
                _fill(path, method, methods[method], models, settings)
    found["paths"], found["components"] = paths, {"schemas": schemas}
    if settings.tokens:
        found["components"]["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer"}}
    return found


def cached(app: FastAPI, models: Models, settings: ServeSettings) -> Callable[[], Schema]:
    """`described`, made once."""
    return lru_cache(1)(lambda: described(app, models, settings))


def _served(path: str, models: Models) -> bool:
    """Whether a model answers there."""
    word = path.removeprefix("/v1/")
    return word in ("models", path) or any(word in model.can for model in models.values())


def _fill(path: str, method: str, operation: Schema, models: Models, settings: ServeSettings) -> None:
    """Parameters, body, answers and security of a route."""
    protocol = path.startswith("/v2")
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _exact(parameter["name"], parameter["schema"], models)
        parameter["required"] = parameter["in"] == "path" or (parameter["name"] == "model" and len(models) > 1)
    if path in ("/livez", "/readyz", "/metrics"):
        operation["responses"] = {
            code: {"description": "In words", "content": {"text/plain": {"schema": parts.STRING}}}
            for code in ("200", "503")[: 1 if path == "/metrics" else 2]
        }
    else:
        answer, media = _answer(path, models)
        ready = {"503": {"description": WRONG[503], "content": {JSON: {"schema": answer}}}} if "ready" in path else {}
        operation["responses"] = (
            {"200": {"description": "Done", "content": {media: {"schema": answer}} | _lines(path)}}
            | _errors(protocol, WRONG if method == "post" else OF_READING)
            | ready
        )
    if method == "post":
        operation["requestBody"] = {"required": True, "content": _bodies(path, models, settings)}
    if settings.tokens and not path.startswith(("/livez", "/readyz", "/v2/health")):
        operation["security"] = [{BEARER: []}]
        operation["responses"] |= _errors(protocol, (401,))


def _lines(path: str) -> Schema:
    """The stream that a route may answer with."""
    return {NDJSON: {"schema": parts.STRING}} if path == "/v1/sample" else {}


def _exact(name: str, schema: Schema, models: Models) -> Schema:
    """A parameter without the null that no query can say, and with the names that there are."""
    if name == "model":
        return {"type": "string", "enum": list(models)}
    if name == "version":
        return {"type": "string", "enum": sorted({model.version for model in models.values()})}
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return kinds[0]


def _errors(protocol: bool, codes: Any) -> dict[str, Schema]:
    schema = {"$ref": f"#/components/schemas/{'ProtocolError' if protocol else 'Error'}"}
    return {
        str(code): {"description": WRONG.get(code, "No valid bearer token"), "content": {JSON: {"schema": schema}}}
        for code in codes
    }


def _each(models: Models, word: str, make: Callable[[ServedModel], Schema]) -> Schema:
    """One schema, or any of those of several models that can do this."""
    found = [make(model) for model in models.values() if word in model.can]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _bodies(path: str, models: Models, settings: ServeSettings) -> Schema:
    """What a route reads, by content type."""
    word = path.removeprefix("/v1/")
    if path.startswith("/v2"):
        return {JSON: {"schema": _each(models, "score", _inference), "example": _inference_example(models)}}
    if word == "sample":
        return {JSON: {"schema": _each(models, word, _sample), "example": {"n": 2}}}
    if word == "inpaint":
        return {JSON: {"schema": _each(models, word, _inpaint)}}
    options: dict[str, Schema] = {
        "score": {"alpha": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1}},
        "rerank": {"keep": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**63 - 1}},
    }.get(word, {})

    def body(model: ServedModel) -> Schema:
        rows = parts.instances(model, settings.max_batch)
        return obj({"instances": rows, **options}, optional=tuple(options))

    able = [model for model in models.values() if word in model.can]
    found: Schema = {
        JSON: {"schema": _each(models, word, body), "example": {"instances": [parts.example_row(able[0])]}}
    }
    contents = {model.servable.content for model in able}
    if contents & {"image", "rows"} or any(s.datatype != "BYTES" for model in able for s in model.inputs[:1]):
        found[NPY] = {"schema": BINARY}
    if contents & {"table", "text"}:
        found[CSV] = {"schema": parts.STRING}
    if "image" in contents:
        found |= {media: {"schema": BINARY} for media in PICTURES}
    return found


def _sample(model: ServedModel) -> Schema:
    """Draws, of a class where the model has some."""
    schema = SampleRequest.model_json_schema()
    schema["properties"]["label"] = {"anyOf": [*parts.classes(model), {"type": "null"}], "default": None}
    return schema


def _inpaint(model: ServedModel) -> Schema:
    """An image, and where it is observed."""
    spec = model.inputs[0]
    shape, schema = spec.shape[1:], InpaintRequest.model_json_schema()["properties"]
    mask = parts.nested(shape, {"enum": [0, 1]})
    image = {"image": parts.image(spec), "observed": {"anyOf": [mask, parts.base64_image(shape)]}}
    return obj({**image, "n": schema["n"], "seed": schema["seed"]}, optional=("n", "seed"))


def _inference(model: ServedModel) -> Schema:
    """A request of the protocol."""
    asked = obj({"name": {"enum": [s.name for s in model.outputs]}, "parameters": parts.parameters()}, ("parameters",))
    inputs = listed({"anyOf": [parts.tensor(spec) for spec in model.inputs]}, len(model.inputs))
    properties = {
        "id": {"type": "string", "maxLength": 1000},
        "parameters": parts.parameters(),
        "inputs": inputs,
        "outputs": {"type": "array", "items": asked},
    }
    return obj(properties, optional=("id", "parameters", "outputs"))


def _inference_example(models: Models) -> Schema:
    model = next(iter(models.values()))
    tensors = []
    for spec in model.inputs:
        shape = [1, *spec.shape[1:]]
        size = 1
        for one in shape:
            size *= one
        data = ["a"] * size if spec.datatype == "BYTES" else [0] * size
        tensors.append({"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": data})
    return {"inputs": tensors}


def _answer(path: str, models: Models) -> tuple[Schema, str]:
    """(the schema of a good answer, its content type)."""
    word = path.removeprefix("/v1/")
    if path.startswith("/v2"):
        return _protocol_answer(path, models), JSON
    answers: Mapping[str, Callable[[ServedModel], Schema]] = {
        "score": lambda m: parts.predictions(m, listed(obj(parts.scores(m)))),
        "explain": lambda m: parts.predictions(m, listed(obj(parts.reasons(m) | parts.scores(m)))),
        "sample": lambda m: parts.predictions(m, parts.drawn(m)),
        "classify": lambda m: parts.predictions(m, listed(parts.classified(m))),
        "rerank": lambda m: parts.predictions(
            m, listed(obj({"energy": parts.NUMBER})), order=listed({"type": "integer", "minimum": 0})
        ),
    }
    if word == "inpaint":
        return parts.STRING, NDJSON
    if word == "models":
        return _models(models), JSON
    return _each(models, word, answers[word]), JSON


def _models(models: Models) -> Schema:
    def one(model: ServedModel) -> Schema:
        bins = obj({"edges": listed(parts.NUMBER), "counts": listed(parts.WHOLE)})
        fixed = {"name": model.name, "version": model.version, "content": model.servable.content}
        return obj(
            {name: {"const": value} for name, value in fixed.items()}
            | {"title": parts.STRING, "flag_rate": {"type": ["number", "null"]}}
            | {"inputs": parts.metadata(model.inputs), "outputs": parts.metadata(model.outputs)}
            | {"can": listed({"enum": list(model.can)}), "labels": {"type": ["array", "null"], "items": parts.STRING}}
            | {"histogram": {"anyOf": [bins, {"type": "null"}]}}
        )

    found = [one(model) for model in models.values()]
    return obj({"models": listed(found[0] if len(found) == 1 else {"anyOf": found}, len(found))})


def _protocol_answer(path: str, models: Models) -> Schema:
    if path == "/v2":
        return obj({"name": parts.STRING, "version": parts.STRING, "extensions": listed(parts.STRING)})
    if path.startswith("/v2/health"):
        return obj({path.rpartition("/")[2]: parts.BOOLEAN})

    def one(model: ServedModel) -> Schema:
        if path.endswith("/ready"):
            return obj({"name": {"const": model.name}, "ready": parts.BOOLEAN})
        if not path.endswith("/infer"):
            kept = {"name": {"const": model.name}, "versions": listed({"const": model.version}, 1)}
            told = {"inputs": parts.metadata(model.inputs), "outputs": parts.metadata(model.outputs)}
            return obj(kept | {"platform": {"const": "thalweg"}} | told)
        data = {"type": "array", "items": {"type": ["number", "boolean", "string"]}}
        entry = {"name": parts.STRING, "datatype": parts.STRING, "shape": listed(parts.WHOLE)}
        outputs = listed(obj(entry | {"data": data, "parameters": parts.parameters()}, ("data", "parameters")))
        head = {"model_name": {"const": model.name}, "model_version": {"const": model.version}, "id": parts.STRING}
        return obj(head | {"parameters": parts.parameters(), "outputs": outputs}, optional=("id", "parameters"))

    return _each(models, "score", one)
