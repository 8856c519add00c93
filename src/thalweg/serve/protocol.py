"""HTTP/1.1 of one connection: uvicorn's, with what a service under load needs.

A head that is not there in time is seen, and one that grows is refused. So is what should not be taken, by its head. A
body in tiny chunks is given up, and head and body of an answer leave in one call of the system.

The end of what a client sends means either that it is gone, or that it sends no more and waits. The two look alike, so
the first letters of the answer are sent at once: the system of a client that is gone answers them by a reset.
"""

import asyncio
import re
import socket
from functools import partial
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from thalweg.serve.answers import WHOLE
from thalweg.serve.errors import HttpError
from thalweg.serve.overload import Overload, lines_of
from thalweg.serve.safety.bodies import TINY_CHUNKS
from thalweg.serve.safety.headers import CACHE, HEADERS

HEAD = 10.0  # seconds in which a request's head must come in
LARGEST_HEAD = 65_536  # bytes of a head that may have come while its end has not
CHUNKS = 1100  # of a chunked body; beyond, they may not be tiny. A line of CSV a chunk, of --max-batch rows, has less
LEAST_MEAN = 16  # bytes that a chunk must have on average
RENEW = 5.0  # seconds by which the time that an idle connection is kept may be short after a refusal
PLAIN = re.compile(rb"POST (/[\w/.-]{1,200}) HTTP/1\.1\r\n")
LENGTH = re.compile(rb"\r\ncontent-length: (\d{1,6})(?:\r\n|$)", re.IGNORECASE)
OK = b"HTTP/1.1 200 OK\r\n"
SPECIAL = {b"transfer-encoding", b"connection", b"expect", b"upgrade"}  # headers that change what follows
VERSION = b"HTTP/1.1 "  # every answer begins so
SOON = 0.001  # seconds until a reset of a client that may be gone is looked for again; then twice as long
SELDOM = 0.25  # at most


class Protocol(HttpToolsProtocol):
    """The protocol of a connection.

    Args:
        overload: Who says what is refused.
        given: Of uvicorn's protocol.
    """

    due: float | None = None  # until when the head that is read must be there
    between = True  # whether no part of a request was read that is not whole
    refused = False  # whether the request that is read now was answered already
    dropped = False  # whether what still comes is forgotten
    chunks = bytes_of_chunks = 0  # of the body that is read now
    head = 0  # bytes that came since the head that is read began
    running: Any = None  # the cycle of the request that was handed to the application last
    half_closed = False  # whether the client sends no more

    def __init__(self, overload: Overload, **given: Any):
        super().__init__(**given)
        self.overload = overload

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.due = self.loop.time() + HEAD

    def connection_lost(self, exc: Exception | None) -> None:
        cycle = self.running
        if cycle is not None and cycle is not self.cycle and not cycle.response_complete:
            cycle.disconnected = True  # uvicorn tells the last one that was read alone
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.dropped:
            return
        if self.between and self.overload.may_refuse() and (self.cycle is None or self.cycle.response_complete):
            path = whole_post(data)
            answer = None if path is None else self.overload.refusal(path, self.server_state.default_headers)
            if answer is not None:
                self._refuse(answer)
                return
        self.head += len(data)
        super().data_received(data)
        if self.due is not None and self.head > LARGEST_HEAD and not self.transport.is_closing():
            self._refuse_head()

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The client sends no more. Whether the connection is kept: for the answers to whole requests, if it waits."""
        cycle = self.running
        if self.half_closed:
            return True
        if cycle is None or cycle.response_complete or self.cycle.more_body:
            return False
        self.half_closed = True
        self.cycle.keep_alive = False  # of the last request, which may follow the one that is answered now
        cycle.transport.begin(started=cycle.response_started, chunked=bool(cycle.chunked_encoding))
        if has_left(self.transport):
            return False
        self.loop.call_later(SOON, self._look, SOON)
        return True

    def _look(self, seconds: float) -> None:
        """Give up a client that has left, and look again, later than after these seconds, while it has no answer."""
        if self.transport.is_closing():
            return
        if has_left(self.transport):
            self.transport.abort()
            return
        seconds = min(2 * seconds, SELDOM)
        self.loop.call_later(seconds, self._look, seconds)

    def on_message_begin(self) -> None:
        self.due, self.head = self.loop.time() + HEAD, 0  # what came with its first bytes is not counted
        self.between = False
        self.chunks = self.bytes_of_chunks = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.due = None
        parser: Any = self.parser
        free = self.cycle is None or self.cycle.response_complete  # else it follows another one that is not answered
        if free and parser.get_method() == b"POST" and parser.should_keep_alive() and self._small():
            answer = self.overload.refusal(self.url, self.server_state.default_headers)
            if answer is not None:
                self.refused = True
                self._refuse(answer)
                return
        super().on_headers_complete()
        cycle: Any = self.cycle
        cycle.transport = BufferedHeadTransport(self.transport)
        cycle.on_response = partial(self._answered, cycle)
        cycle.scope["extensions"] = {WHOLE: partial(self._answer_whole, cycle)}

    def on_chunk_header(self) -> None:
        """Give up a body of more than `CHUNKS` chunks that are tiny: each costs the event loop some microseconds."""
        self.chunks += 1
        if self.chunks > CHUNKS and self.bytes_of_chunks < LEAST_MEAN * self.chunks:
            raise ValueError("tiny chunks")

    def on_body(self, body: bytes) -> None:
        if self.refused:
            return
        self.bytes_of_chunks += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.between = True
        if not self.refused:
            super().on_message_complete()
            return
        self.refused = False
        self._keep()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered here; a body in tiny chunks by the layer that limits bodies."""
        if self.chunks <= CHUNKS or self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
            return
        self.dropped = True
        self.cycle.scope["state"][TINY_CHUNKS] = True  # pyright: ignore[reportTypedDictNotRequiredAccess]
        self.cycle.message_event.set()

    def _answered(self, cycle: Any) -> None:
        """A request has its answer; another one may have been read meanwhile."""
        cycle.transport.flush()
        del cycle.scope["extensions"]  # which holds the cycle
        self.on_response_complete()

    def _answer_whole(self, cycle: Any, head: bytes, body: bytes) -> bool:
        """Answer a request by 200 in one write. False, and nothing is written, where messages of ASGI must do it.

        Args:
            cycle: Of the request.
            head: Lines of headers, with the body's length.
            body: Bytes.
        """
        busy = cycle.disconnected or cycle.response_started or cycle.flow.write_paused
        if busy or self.half_closed or not cycle.keep_alive:
            return False
        self.transport.write(b"".join((OK, *lines_of(self.server_state.default_headers), head, b"\r\n", body)))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _refuse_head(self) -> None:
        """431, and the end of the connection; without an answer where another one is being written."""
        self.dropped = True
        if self.running is not None and not self.running.response_complete:
            self.transport.abort()
            return
        body = to_json(HttpError(431, "head_too_large", f"must have a head of at most {LARGEST_HEAD} bytes").body())
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS, CACHE]
        head = lines_of([*self.server_state.default_headers, *own, (b"connection", b"close")])
        self.transport.write(b"".join((VERSION, b"431 Request Header Fields Too Large\r\n", *head, b"\r\n", body)))
        self.transport.close()

    def _refuse(self, answer: bytes) -> None:
        """Answer a request by its head; the connection is kept for the next one."""
        self.due = None
        self.transport.write(answer)
        self.server_state.total_requests += 1
        self._keep()

    def _keep(self) -> None:
        """Wait for the next request."""
        until = self.loop.time() + self.timeout_keep_alive
        if self.timeout_keep_alive_task is None or self.timeout_keep_alive_task.when() < until - RENEW:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_at(until, self.timeout_keep_alive_handler)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        if app is self.app:
            self.overload.request_admitted()
        super()._start_asgi_task(cycle, app)

    def _small(self) -> bool:
        """Whether the body is one that may be passed over: its length is told, and is short."""
        lengths = [value for name, value in self.headers if name in (b"content-length", b"transfer-encoding")]
        return len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) <= 6


def whole_post(data: bytes) -> bytes | None:
    """The path of a POST of the plainest form that was read whole, found at a tenth of a parser's price; else None."""
    head, end, body = data.partition(b"\r\n\r\n")
    found = PLAIN.match(head) if end else None
    if found is None:
        return None
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    if names.count(b"content-length") != 1 or not SPECIAL.isdisjoint(names):
        return None
    length = LENGTH.search(head)
    return found[1] if length is not None and int(length[1]) == len(body) else None


def has_left(transport: asyncio.BaseTransport) -> bool:
    """Whether a connection was reset, which whoever has closed it answers to what is sent."""
    try:
        return transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except OSError:
        return True


class BufferedHeadTransport:
    """A connection as the writer of an answer sees it: the head waits for what follows it.

    Args:
        transport: The connection.
    """

    __slots__ = ("_begun", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport):
        self._transport, self._head, self._begun = transport, b"", b""

    def begin(self, *, started: bool, chunked: bool) -> None:
        """Send some bytes of an answer before it is known.

        Args:
            started: Whether its head is.
            chunked: Whether its body is one of chunks: the size of the next one may begin with 0.
        """
        if self._head:
            self.flush()
        elif not started:
            self._begun = VERSION
            self._transport.write(VERSION)
        elif chunked:
            self._transport.write(b"0")

    def write(self, data: bytes) -> None:
        """Send it, or keep it if it is the head of an answer."""
        if self._begun:
            data, self._begun = data.removeprefix(self._begun), b""
        if not self._head and data.startswith(VERSION) and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
            return
        self._transport.write(self._head + data)
        self._head = b""

    def flush(self) -> None:
        """Send what is kept: the head of an answer without a body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """End the connection after what was written."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._transport.is_closing()
