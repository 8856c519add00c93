"""A client of the service, for Python: arrays, frames and texts in, arrays and dictionaries out."""

import base64
import io
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from thalweg.core.errors import ThalwegError, UserError
from thalweg.data.frames import as_frame, is_frame

JSON, NPY = "application/json", "application/x-npy"
LATER = (429, 503)  # answers that name a time to come again


class ServiceError(ThalwegError):
    """What the service answered in place of a result.

    Args:
        status: Of HTTP.
        code: A word that stays the same, such as `full` or `non_finite`.
        field: Where it is: a parameter, an input; None: it has no place.
        message: A line for people.
    """

    def __init__(self, status: int, code: str, field: str | None, message: str):
        super().__init__(f"{field}: {message}" if field else message)
        self.status, self.code, self.field, self.message = status, code, field, message


class Completion(NamedTuple):
    """An image with its missing part filled in: uint8 (C, H, W), and its energy in nats."""

    image: np.ndarray
    energy: float


class SampleFrame(NamedTuple):
    """Draws on their way: rows as `ScoringClient.sample` gives them, images in uint8, and energies (n,) in nats."""

    rows: Any
    energies: np.ndarray
    last: bool


class Reranking(NamedTuple):
    """Candidates in order, best first, and the energy of each as they were given, (B,) nats."""

    order: np.ndarray
    energy: np.ndarray


class ScoringClient:
    """Asks a service that `thalweg serve` started.

        with ScoringClient("http://127.0.0.1:8000") as client:
            client.score(x)["p_value"]

    Rows are arrays (images in [0, 1] or uint8), frames of pandas, polars or Arrow, or lists of str. Where the service
    has several models, `model` names one.

    Args:
        url: Where it listens.
        token: The bearer token, where it asks for one.
        timeout: Seconds for an answer, which the service is told too.
        retries: Tries after an answer that says when to come again (429, 503).
        http: A client of httpx2 in place of its own, such as starlette's `TestClient` of an application.
    """

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 30.0, retries: int = 0, http: Any = None
    ):
        try:
            import httpx2
        except ImportError as error:
            hint = "pip install 'thalweg[serve]'"
            raise UserError("needs the package httpx2", argument="ScoringClient", hint=hint) from error
        self._headers = {"Request-Timeout-Ms": str(max(1, round(timeout * 1000)))}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self.retries, self._failed = retries, httpx2.HTTPError
        self._http = httpx2.Client(base_url=url, timeout=timeout) if http is None else http

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """What is served: names, inputs, outputs, and what each model can do."""
        with self._asking("GET", "/v1/models") as answer:
            return answer["models"]

    def score(self, x: Any, *, alpha: float | None = None, model: str | None = None) -> dict[str, np.ndarray]:
        """Each output by name, (B, …): `energy`, and `log_prob`, `p_value` and `flag` where the model has them."""
        answer = self._rows("/v1/score", x, model, alpha=alpha)
        return _columns(answer["predictions"])

    def explain(self, x: Any, *, top: int = 3, model: str | None = None) -> list[dict[str, Any]]:
        """The reasons of each row, beside its scores; maps and images as arrays."""
        answer = self._rows("/v1/explain", x, model, top=top)
        arrays = ("map", "repaired")
        return [{k: np.array(v) if k in arrays else v for k, v in row.items()} for row in answer["predictions"]]

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        label: int | str | None = None,
        model: str | None = None,
    ) -> Any:
        """n draws: an array, a list of dictionaries of a table, or a list of str. `label`: a class's number or name."""
        asked = {"n": n, "seed": seed, "temperature": temperature, "label": label}
        with self._asking("POST", "/v1/sample", _of(model), *_json(asked)) as answer:
            return _drawn(answer["predictions"])

    def sample_frames(
        self,
        n: int,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        label: int | str | None = None,
        frames: int = 12,
        model: str | None = None,
    ) -> Iterator[SampleFrame]:
        """The same draws on their way, about so many times, the draws last."""
        asked = {"n": n, "seed": seed, "temperature": temperature, "label": label, "frames": frames}
        for line in self._lines("/v1/sample", model, asked):
            rows = line["rows"]
            shown = _unpacked(rows) if isinstance(rows, dict) else _drawn(rows)
            yield SampleFrame(shown, np.array(line["energies"]), line["last"])

    def inpaint(
        self, image: ArrayLike, observed: ArrayLike, *, n: int = 1, seed: int = 0, model: str | None = None
    ) -> Iterator[Completion]:
        """n completions of one image (C, H, W) where `observed` is false, one after another as they are drawn."""
        mask = np.asarray(observed).astype(bool).astype(int).tolist()
        asked = {"image": _pixels(np.asarray(image)), "observed": mask, "n": n, "seed": seed}
        for line in self._lines("/v1/inpaint", model, asked):
            if "completion" in line:
                yield Completion(_unpacked(line["image"]), line["energy"])

    def rerank(self, x: Any, *, keep: int | None = None, model: str | None = None) -> Reranking:
        """The order of candidates, best first, all or the best `keep`."""
        media, body = _json({"instances": _instances(x), "keep": keep})
        with self._asking("POST", "/v1/rerank", _of(model), media, body) as answer:
            _warn(answer, 3)
            return Reranking(np.array(answer["order"]), _columns(answer["predictions"])["energy"])

    def classify(self, x: Any, *, model: str | None = None) -> list[dict[str, Any]]:
        """`label` and `probabilities` by label of each row."""
        return self._rows("/v1/classify", x, model)["predictions"]

    def _rows(self, path: str, x: Any, model: str | None, **query: Any) -> Any:
        """The answer about rows: an array is sent in numpy's format, anything else as JSON."""
        as_array = not is_frame(x) and not _are_texts(x)
        media, body = (NPY, _npy(np.asarray(x))) if as_array else _json({"instances": _instances(x)})
        with self._asking("POST", path, _of(model) | query, media, body) as answer:
            _warn(answer, 4)
            return answer

    @contextmanager
    def _asking(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, media: str = JSON, body: bytes = b""
    ) -> Iterator[Any]:
        """The JSON that is answered; ServiceError for an error."""
        with self._answered(method, path, query or {}, media, body) as answer:
            yield json.loads(answer.read())

    def _lines(self, path: str, model: str | None, asked: Mapping[str, Any]) -> Iterator[Any]:
        """The lines of an answer as they come; ServiceError for a line that tells one."""
        with self._answered("POST", path, _of(model), *_json(asked)) as answer:
            for line in answer.iter_lines():
                found = json.loads(line)
                if "error" in found:
                    raise ServiceError(answer.status_code, **found["error"])
                yield found

    @contextmanager
    def _answered(self, method: str, path: str, query: Mapping[str, Any], media: str, body: bytes) -> Iterator[Any]:
        words = "&".join(f"{quote(k)}={quote(str(v))}" for k, v in query.items() if v is not None)
        address = f"{path}?{words}" if words else path
        headers = self._headers | ({"Content-Type": media} if body else {})
        for tried in range(self.retries + 1):
            try:
                with self._http.stream(method, address, content=body or None, headers=headers) as answer:
                    if answer.status_code < 400:
                        yield answer
                        return
                    error, wait = _error(answer.status_code, answer.read()), answer.headers.get("retry-after", "")
            except self._failed as failed:
                text = f"the service does not answer ({type(failed).__name__})"
                raise ServiceError(0, "unreachable", None, text) from failed
            if tried == self.retries or error.status not in LATER or not wait.isdigit():
                raise error
            time.sleep(int(wait))


def _error(status: int, body: bytes) -> ServiceError:
    try:
        found = json.loads(body)
        return ServiceError(status, found["code"], found["field"], found["message"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(status, "unknown", None, f"the answer was {status}, and no error of this service")


def _warn(answer: Mapping[str, Any], level: int) -> None:
    """What the service warns of, as warnings of Python `level` calls above."""
    for line in answer.get("warnings", ()):
        warnings.warn(line, stacklevel=level)


def _of(model: str | None) -> dict[str, Any]:
    return {"model": model}


def _json(value: Any) -> tuple[str, bytes]:
    return JSON, json.dumps(value, allow_nan=False).encode()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _are_texts(x: Any) -> bool:
    return isinstance(x, Sequence) and len(x) > 0 and all(isinstance(text, str) for text in x)


def _instances(x: Any) -> list[Any]:
    """Rows as JSON has them: a frame's as objects, with null where a value is missing."""
    if is_frame(x):
        return [{name: _plain(value) for name, value in row.items()} for row in as_frame(x, "x").rows(named=True)]
    return list(x) if _are_texts(x) else np.asarray(x).tolist()


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and value != value else value


def _pixels(image: np.ndarray) -> Any:
    """An image as JSON has it: uint8 in base64, floats as lists."""
    if image.dtype == np.uint8:
        return {"shape": list(image.shape), "data": base64.b64encode(image.tobytes()).decode()}
    return image.tolist()


def _unpacked(value: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), np.uint8).reshape(value["shape"])


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _drawn(rows: list[Any]) -> Any:
    return np.array(rows) if rows and isinstance(rows[0], list) else rows
