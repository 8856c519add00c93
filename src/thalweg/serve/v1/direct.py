"""The short way of scores: a plain POST to /v1/score, which is what loads a service.

Finding a route and its parameters and passing eight layers costs more than reading a small body and scoring it. This
layer stands before all others, and makes the same checks by the same functions. Whatever is not plain, or is not let
in, takes the ordinary way, which answers it; both ways give the same answers.
"""

import logging
import time
from collections.abc import Callable, Mapping

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thalweg.serve.answers import TIMEOUT_HEADER, WHOLE, asking
from thalweg.serve.engine.gone import gone_of
from thalweg.serve.errors import HttpError, internal
from thalweg.serve.inputs.body import INLINE, JSON, NPY, rows_of
from thalweg.serve.logs import RequestLog, noting, request_id
from thalweg.serve.metrics import Metrics
from thalweg.serve.safety.headers import CACHE, HEADERS
from thalweg.serve.safety.observed import ID
from thalweg.serve.safety.origin import Origin
from thalweg.serve.safety.tokens import Tokens
from thalweg.serve.v1.routes import Plain

PATH = "/v1/score"
MEDIA = {JSON.encode(): JSON, NPY.encode(): NPY}
SPECIAL = {b"transfer-encoding", b"content-encoding", b"expect"}  # headers that other layers deal with
TIMEOUT = TIMEOUT_HEADER.encode()
FIXED = [(b"content-type", JSON.encode()), *HEADERS, CACHE]
HEAD = b"".join(name + b": " + value + b"\r\n" for name, value in FIXED) + b"content-length: %d\r\n" + ID + b": %b\r\n"

log = logging.getLogger("thalweg.serve")
Headers = Mapping[bytes, bytes]
Answer = tuple[int, bytes, Mapping[str, str]]  # status, JSON, headers beside those of all answers


class ScoreFastPath:
    """Pure ASGI, the outermost layer.

    Args:
        app: The ordinary way.
        plain: The plain routes.
        metrics: Where requests are counted.
        origin, tokens: Who is let in.
        max_body: Bytes.
        requests: Where a line is written for each request, if anywhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        plain: Plain,
        metrics: Metrics,
        origin: Origin,
        tokens: Tokens,
        max_body: int,
        requests: Callable[[], RequestLog | None],
    ):
        self.app, self.plain, self.metrics, self.origin, self.tokens = app, plain, metrics, origin, tokens
        self.requests = requests
        self.limit = min(max_body, INLINE)
        models = list(plain.context.models.values())
        self.only = models[0] if len(models) == 1 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = scope["type"] == "http" and scope["method"] == "POST"
        headers = dict(scope["headers"]) if post and scope["path"] == PATH and self.only is not None else None
        if headers is None or not self._plain(scope, headers):
            await self.app(scope, receive, send)
            return
        begun, name = time.perf_counter(), request_id(scope["headers"])
        message = await _at_once(receive)
        if message is None or message["type"] != "http.request" or message.get("more_body"):
            await self.app(scope, _again(message, receive), send)
            return
        with self.metrics.in_progress(), noting() as notes:
            code, body, more = await self._answer(headers, receive, message.get("body", b""), name)
            seconds = time.perf_counter() - begun
            self.metrics.request(PATH, code, seconds)
            requests = self.requests()
            if requests is not None:
                requests.write("POST", PATH, code, seconds, name, notes)
        if code != 200 or not self._whole(scope, body, name):
            await _send(send, code, body, more, name)

    def _plain(self, scope: Scope, headers: Headers) -> bool:
        length = headers.get(b"content-length", b"")
        return (
            not scope["query_string"]
            and headers.get(b"content-type") in MEDIA
            and 0 < len(length) <= 6
            and length.isdigit()
            and 0 < int(length) <= self.limit
            and SPECIAL.isdisjoint(headers)
            and len(headers) == len(scope["headers"])
            and self.origin.allows(scope, headers)
            and self.tokens.allows(scope)
        )

    async def _answer(self, headers: Headers, receive: Receive, body: bytes, name: str) -> Answer:
        assert self.only is not None
        try:
            with asking(self.only):
                self.plain.engine.admit(self.only.name)  # before the body is understood: refusals must be cheap
            found = rows_of(MEDIA[headers[b"content-type"]], body, self.only, self.plain.settings, ("alpha",))
            told = headers.get(TIMEOUT)
            limit = self.plain.context.limit(None if told is None else told.decode("latin-1"))
            return 200, await self.plain.scored(self.only, found, limit, gone_of(receive)), {}
        except HttpError as error:
            return error.status, to_json(error.body()), error.headers
        except Exception:
            log.exception("request %s failed", name)
            return 500, to_json(internal().body()), {}

    def _whole(self, scope: Scope, body: bytes, name: str) -> bool:
        """Answer in one write, where the server can. At the end of the service each answer ends its connection."""
        if not self.plain.engine.taking:
            return False
        whole = scope.get("extensions", {}).get(WHOLE)
        return whole is not None and whole(HEAD % (len(body), name.encode()), body)


async def _send(send: Send, code: int, body: bytes, more: Mapping[str, str], name: str) -> None:
    own = [(b"content-length", str(len(body)).encode()), (ID, name.encode())]
    own += [(key.lower().encode(), value.encode()) for key, value in more.items()]
    await send({"type": "http.response.start", "status": code, "headers": [*FIXED, *own]})
    await send({"type": "http.response.body", "body": body})


async def _at_once(receive: Receive) -> Message | None:
    """The next message if it is there; None, and nothing is lost, if it would have to be waited for."""
    waiting = receive().__await__()
    try:
        next(waiting)
    except StopIteration as end:
        return end.value
    waiting.close()
    return None


def _again(message: Message | None, receive: Receive) -> Receive:
    """A `receive` that begins with a message that was taken."""
    taken = [] if message is None else [message]

    async def replay() -> Message:
        return taken.pop() if taken else await receive()

    return replay
