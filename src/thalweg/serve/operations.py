"""/livez, /readyz and /metrics: what an orchestrator and a collector of metrics ask."""

from fastapi import APIRouter, Response

from thalweg.serve.engine.engine import Engine
from thalweg.serve.metrics import Metrics

TEXT = "text/plain; version=0.0.4; charset=utf-8"  # of Prometheus


def operations(engine: Engine, metrics: Metrics) -> APIRouter:
    """The three routes. 200 or 503, and in words why."""
    router = APIRouter(tags=["operations"])

    @router.get("/livez", responses={503: {"description": "The process cannot go on; start it anew"}})
    async def livez() -> Response:
        """Whether the process works: its worker runs, and is not stuck."""
        state = engine.state()
        return _answer(state.alive, state.reason)

    @router.get("/readyz", responses={503: {"description": "Send requests elsewhere for now"}})
    async def readyz() -> Response:
        """Whether requests are taken: models are loaded, the queue has room, and the service does not end."""
        state = engine.state()
        return _answer(state.ready, state.reason)

    @router.get("/metrics")
    async def of_metrics() -> Response:
        """Figures in Prometheus' text format."""
        return Response(metrics.text(), media_type=TEXT)

    for path, route in (("/livez", livez), ("/readyz", readyz)):  # some balancers probe by HEAD
        router.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)
    return router


def _answer(good: bool, reason: str) -> Response:
    return Response("ok" if good else reason, 200 if good else 503, media_type="text/plain")
