"""The Open Inference Protocol, version 2, over HTTP, as its public clients speak it."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from thalweg import __version__
from thalweg.serve.answers import RouteContext, answer, asking, require_finite
from thalweg.serve.engine.gone import gone_of
from thalweg.serve.errors import HttpError
from thalweg.serve.inputs.body import INLINE, require_utf8
from thalweg.serve.models import ServedModel, spec_of
from thalweg.serve.v2 import inference

BINARY = "application/octet-stream"


def protocol_routes(context: RouteContext) -> APIRouter:
    """/v2 and what lies below it."""
    router, routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"]), InferenceRoutes(context)
    router.get("")(routes.server)
    _probe(router, "/health/live", routes.live)
    _probe(router, "/health/ready", routes.ready)
    for path in ("/models/{model}", "/models/{model}/versions/{version}"):
        router.get(path)(routes.metadata)
        _probe(router, f"{path}/ready", routes.model_ready)
        router.post(f"{path}/infer")(routes.infer)
    return router


def _probe(router: APIRouter, path: str, route: Callable[..., Any]) -> None:
    """A route that says whether something is well; by HEAD, too, as what balances loads may ask."""
    router.get(path)(route)
    router.head(path, include_in_schema=False)(route)


class InferenceRoutes:
    """One method a route."""

    def __init__(self, context: RouteContext):
        self.context, self.engine, self.settings = context, context.engine, context.settings

    async def server(self) -> Response:
        """What serves."""
        return answer({"name": "thalweg", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self) -> Response:
        """Whether it answers."""
        alive = self.engine.state().alive
        return answer({"live": alive}, 200 if alive else 503)

    async def ready(self) -> Response:
        """Whether it takes requests."""
        ready = self.engine.state().ready
        return answer({"ready": ready}, 200 if ready else 503)

    async def metadata(self, model: str, version: str | None = None) -> Response:
        """A model's inputs and outputs."""
        served = self._find(model, version)
        return answer(
            {
                "name": served.name,
                "versions": [served.version],
                "platform": "thalweg",
                "inputs": [spec_of(spec) for spec in served.inputs],
                "outputs": [spec_of(spec) for spec in served.outputs],
            }
        )

    async def model_ready(self, model: str, version: str | None = None) -> Response:
        """Whether a model takes requests."""
        served, ready = self._find(model, version), self.engine.state().ready
        return answer({"name": served.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request, model: str, version: str | None = None) -> Response:
        """The outputs of rows."""
        served = self._find(model, version)
        require_utf8(request.headers.get("content-type", ""))
        data, header = await request.body(), request.headers.get(inference.LENGTH_HEADER)
        given = (data, header, served, self.settings)
        asked = inference.read(*given) if len(data) <= INLINE else await run_in_threadpool(inference.read, *given)
        how: dict[str, Any] = {
            "alpha": asked.alpha,
            "deadline": self.context.deadline(request, asked.timeout),
            "gone": gone_of(request.receive),
        }
        with asking(served):
            found = await self.engine.score(served.name, asked.rows, **how)
        require_finite(found)
        body, length = inference.write(served, asked, found)
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, headers={inference.LENGTH_HEADER: str(length)}, media_type=BINARY)

    def _find(self, model: str, version: str | None) -> ServedModel:
        served = self.context.models.find(model)
        if version is not None and version != served.version:
            raise HttpError(404, "not_found", f"must be version {served.version} of {served.name}", field="version")
        return served
