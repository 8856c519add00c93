"""The outermost layer: counts and logs responses, and answers what nobody expected without a word of the machine."""

import logging
import time

from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thalweg.serve.errors import HttpError, internal
from thalweg.serve.logs import RequestLog, noting, request_id
from thalweg.serve.metrics import Metrics

log = logging.getLogger("thalweg.serve")
ID = b"x-request-id"
GONE = 499  # as nginx has it: the client left, and nobody reads the answer
OTHER = "other"  # the route of a path that there is not


class MetricsMiddleware:
    """Pure ASGI, so that streams are not held back."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, name = time.perf_counter(), 0, request_id(scope["headers"])

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (ID, name.encode())]}
            await send(message)

        with self.metrics.in_progress(), noting() as notes:
            try:
                await self.app(scope, receive, sending)
            except ClientDisconnect:
                status = status or GONE
            except Exception:
                log.exception("request %s failed", name)
                if status:  # its headers are gone: the connection is closed by the server
                    raise
                await reply(sending, scope, internal())
            finally:
                seconds, route, code = time.perf_counter() - begun, route_of(scope), status or 500
                self.metrics.request(route, code, seconds)
                requests: RequestLog | None = scope["app"].state.requests
                if requests is not None:
                    requests.write(scope["method"], route, code, seconds, name, notes)


def route_of(scope: Scope) -> str:
    """The template of a request's route."""
    route = scope.get("route")
    return OTHER if route is None else str(route.path)


async def reply(send: Send, scope: Scope, error: HttpError) -> None:
    """An error as JSON, in the form of the protocol that the path is of."""
    data = to_json(error.body_for(scope["path"]))
    told = {"content-type": "application/json", "content-length": str(len(data)), **error.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": data, "more_body": False})
