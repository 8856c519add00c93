"""The outermost layer: counts every response, and answers what nobody expected without a word of the machine."""

import logging
import time

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thalweg.serve.errors import internal
from thalweg.serve.metrics import Metrics

log = logging.getLogger("thalweg.serve")
OTHER = "other"  # the route of a path that there is not


class Observed:
    """Pure ASGI, so that streams are not held back."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self.metrics.in_progress():
                await self.app(scope, receive, sending)
        except Exception:
            log.exception("a request failed")
            if status:  # its headers are gone: the connection is closed by the server
                raise
            await reply(sending, scope, 500, internal().body())
        finally:
            self.metrics.request(route_of(scope), status or 500, time.perf_counter() - begun)


def route_of(scope: Scope) -> str:
    """The template of a request's route."""
    route = scope.get("route")
    return OTHER if route is None else str(route.path)


async def reply(send: Send, scope: Scope, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
    """An error as JSON, in the form of the protocol that the path is of."""
    value = {"error": body["message"]} if scope["path"].startswith("/v2") else body
    data = to_json(value)
    told = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    pairs = [(name.lower().encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": data, "more_body": False})
