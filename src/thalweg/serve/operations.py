"""Stand-in until the branch `engine` is merged."""

from fastapi import APIRouter, Response

from thalweg.serve.engine.engine import Engine
from thalweg.serve.metrics import Metrics


def operations(engine: Engine, metrics: Metrics) -> APIRouter:
    """/livez, /readyz, /metrics."""
    router = APIRouter()

    @router.get("/livez")
    async def livez() -> Response:
        return Response("ok" if engine.state().alive else "stuck", 200 if engine.state().alive else 503)

    @router.get("/readyz")
    async def readyz() -> Response:
        return Response("ok" if engine.state().ready else "loading", 200 if engine.state().ready else 503)

    @router.get("/metrics")
    async def of_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain")

    return router
