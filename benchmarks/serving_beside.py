"""Servers for benchmarks/serving.py: ours, and plain FastAPI in two ways, over one and the same servable.

    python benchmarks/serving_beside.py KIND MODEL PORT

KIND is ours, blocking (`async def`, the model called on the event loop), or threadpool (`def`). MODEL is a
folder that `thalweg.load` reads, or `tiny`: a Gaussian energy of 8 numbers, some microseconds a call. SIGUSR1 makes the
next call of the model take 5 s.
"""

import base64
import contextlib
import io
import json
import signal
import sys
import time
from typing import Annotated, Any

import numpy as np

STALL = 5.0


class Tiny:
    """E(x) = |x|² / 2 of 8 numbers."""

    title, content, flag_rate = "tiny", "rows", None

    def __init__(self):
        from thalweg.bundle.servable import TensorSpec

        self.inputs = [TensorSpec("x", "FP32", (-1, 8))]
        self.outputs = [TensorSpec("energy", "FP32", (-1,))]

    def score(self, rows, *, alpha=None):
        return {"energy": 0.5 * np.square(rows["x"]).sum(1)}


class Stalling:
    """A servable that can be made to hang once."""

    def __init__(self, servable):
        self.servable, self.stall = servable, False
        self.title, self.content, self.flag_rate = servable.title, servable.content, servable.flag_rate
        self.inputs, self.outputs = servable.inputs, servable.outputs
        with contextlib.suppress(ValueError):  # not the main thread of a process
            signal.signal(signal.SIGUSR1, self._set)

    def _set(self, *_: Any) -> None:
        self.stall = True

    def __getattr__(self, name):
        return getattr(self.servable, name)

    def score(self, rows, *, alpha=None):
        if self.stall:
            self.stall = False
            time.sleep(STALL)
        return self.servable.score(rows, alpha=alpha)


def servable_of(model: str) -> Any:
    """What is served."""
    if model == "tiny":
        return Stalling(Tiny())
    import thalweg
    from thalweg.bundle.servable import GetsReady

    servable = thalweg.load(model).servable()
    if isinstance(servable, GetsReady):  # as the service does it, for all alike
        servable.get_ready()
    return Stalling(servable)


def rows_of(value: Any) -> np.ndarray:
    """An input (1, …) from `instances` of JSON: numbers, or uint8 pixels in base64."""
    if isinstance(value[0], dict):
        pixels = [np.frombuffer(base64.b64decode(one["data"]), np.uint8).reshape(one["shape"]) for one in value]
        return np.stack(pixels).astype(np.float32) / 255
    return np.array(value, np.float32)


def predictions(found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """An object a row."""
    return [dict(zip(found, row, strict=True)) for row in zip(*(v.tolist() for v in found.values()), strict=True)]


def plain(servable: Any, port: int, *, blocking: bool) -> None:
    """FastAPI as a tutorial has it: a pydantic model, or bytes of npy."""
    import uvicorn
    from fastapi import Body, FastAPI, Request
    from pydantic import BaseModel

    class Query(BaseModel):
        instances: list[Any]

    app = FastAPI()

    def of_json(query: Query) -> dict[str, Any]:
        return {"predictions": predictions(servable.score({"x": rows_of(query.instances)}))}

    def of_npy(data: bytes) -> dict[str, Any]:
        return {"predictions": predictions(servable.score({"x": np.load(io.BytesIO(data), allow_pickle=False)}))}

    if blocking:

        @app.post("/v1/score")
        async def score(query: Query) -> dict[str, Any]:
            return of_json(query)

        @app.post("/npy")
        async def npy(request: Request) -> dict[str, Any]:
            return of_npy(await request.body())
    else:

        @app.post("/v1/score")
        def score(query: Query) -> dict[str, Any]:
            return of_json(query)

        @app.post("/npy")
        def npy(data: Annotated[bytes, Body(media_type="application/x-npy")]) -> dict[str, Any]:
            return of_npy(data)

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def ours(servable: Any, port: int, options: list[str]) -> None:
    """`thalweg serve` as it is, its log of requests written to /dev/null by the caller."""
    from thalweg.serve.app import create_app
    from thalweg.serve.server import run
    from thalweg.serve.settings import ServeSettings

    values = {name: json.loads(value) for name, value in (option.split("=") for option in options)}
    settings = ServeSettings(port=port, page=False, **values)  # pyright: ignore[reportArgumentType]
    sys.exit(run(create_app({"m": servable}, settings), settings, say=print))


if __name__ == "__main__":
    kind, model, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if kind == "ours":
        ours(servable_of(model), port, sys.argv[4:])
    else:
        import torch

        torch.set_num_threads(1)
        plain(servable_of(model), port, blocking=kind == "blocking")
