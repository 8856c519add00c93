"""The size and the pace of a request's body, held while it comes in.

A body that is too large is answered as soon as that is known, by its declared length or by what has come. The rest is
then read for a short while, at most 64 KiB beyond the limit, and the connection closed: a client that is cut off while
it writes would lose the answer.
"""

import asyncio
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thalweg.serve.errors import HttpError, malformed
from thalweg.serve.safety.observed import reply

BEYOND = 65_536  # bytes that are read after the limit
LINGER = 2.0  # seconds for what comes after an early answer
TINY_CHUNKS = "thalweg.tiny_chunks"  # in a scope's state: the server has given the body up, as its chunks are too small


class BodyLimitMiddleware:
    """Limits of bodies.

    Args:
        app: What is limited.
        max_body: Bytes.
        seconds: Until a body must be there.
    """

    def __init__(self, app: ASGIApp, max_body: int, seconds: float):
        self.app, self.max_body, self.seconds = app, max_body, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        body = _Body(self, receive, send, there=bool(length.strip(b"0")) or b"transfer-encoding" in headers)
        body.state = scope.get("state", {})
        try:
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise HttpError(415, "unsupported_media_type", "must not be compressed", field="content-encoding")
            if length and (not length.isdigit() or len(length) > 18 or int(length) > self.max_body):
                raise too_large(self.max_body)
            await self.app(scope, body.receive, body.send)
        except HttpError as error:
            if body.started:
                raise
            await reply(body.send, scope, error)


class _Body:
    """One request's body and its answer."""

    def __init__(self, limits: BodyLimitMiddleware, receive: Receive, send: Send, *, there: bool):
        self._limits, self._receive, self._send = limits, receive, send
        self._read, self._open, self.started = 0, there, False
        self._end = asyncio.get_running_loop().time() + limits.seconds
        self.state: MutableMapping[str, Any] = {}

    async def receive(self) -> Message:
        """The next part; HttpError 413, 408 or 400 for a body that is too large, too slow or in tiny chunks."""
        if not self._open:
            return await self._receive()
        left = self._end - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(left, 0.001)):
                message = await self._receive()
        except TimeoutError as error:
            text = f"must send its body within {self._limits.seconds:g} seconds"
            raise HttpError(408, "slow_body", text) from error
        self._take(message)
        if TINY_CHUNKS in self.state:
            raise malformed("must come in chunks of 16 bytes or more on average, or with a Content-Length")
        if self._read > self._limits.max_body:
            raise too_large(self._limits.max_body)
        return message

    async def send(self, message: Message) -> None:
        """Passes the answer on; where the body is not read, tells the client that the connection ends."""
        if message["type"] == "http.response.start":
            self.started = True
            if self._open:
                given = [pair for pair in message.get("headers", []) if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*given, (b"connection", b"close")]}
        if message["type"] == "http.response.body" and self._open and not message.get("more_body"):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        """Read what still comes, and forget it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self._open and self._read < self._limits.max_body + BEYOND:
                    self._take(await self._receive())

    def _take(self, message: Message) -> None:
        self._read += len(message.get("body", b""))
        self._open = message["type"] == "http.request" and bool(message.get("more_body"))


def too_large(max_body: int) -> HttpError:
    """413."""
    return HttpError(413, "too_large", f"must have a body of at most {max_body} bytes")
