"""The process: uvicorn, signals, and an end that loses no answer.

SIGTERM or SIGINT: `/readyz` answers 503, what was accepted is answered, new work gets 503 with Retry-After, connections
are closed after their answer; then the process ends with 0, or 1 if the time was too short. A second signal ends it at
once.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thalweg.serve.engine.engine import Engine
from thalweg.serve.engine.forked import InProcess
from thalweg.serve.engine.forker import Forker, can_fork
from thalweg.serve.listener import Acceptor, bound, stop_beginning
from thalweg.serve.logs import set_up
from thalweg.serve.overload import Overload
from thalweg.serve.protocol import Protocol
from thalweg.serve.settings import ServeSettings

KEEP_ALIVE = 75  # seconds that an idle connection is kept: longer than a load balancer keeps it
NOTICE = 1.0  # seconds between a signal and the close, in which load balancers see /readyz
HANDSHAKE = 0.05  # seconds in which connections that have begun come to stand
FILES = 65_536  # open files that are asked for; a connection is one
BACKLOG = 2048  # connections that may wait to be accepted

SWITCH = 0.001  # seconds after which the event loop lets the thread that hands on calls go: it needs little

log = logging.getLogger("thalweg.serve")


class CloseConnections:
    """ASGI that ends each connection after its answer once the service ends; says when the loop comes to a request."""

    def __init__(self, app: ASGIApp, overload: Overload):
        self.app, self.overload, self.closing = app, overload, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.overload.request_started()

        async def sending(message: Message) -> None:
            if self.closing and message["type"] == "http.response.start":
                given = [pair for pair in message.get("headers", []) if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*given, (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive, sending)


class Server(uvicorn.Server):
    """uvicorn whose signals drain the engine first.

    Args:
        app: The application.
        engine: Its engine.
        settings: Of the service.
        listener: The socket, bound.
        announce: Is called when the service listens.
    """

    def __init__(
        self,
        app: FastAPI,
        engine: Engine,
        settings: ServeSettings,
        listener: socket.socket,
        announce: Callable[[], None] = lambda: None,
    ):
        self.overload = Overload(engine, engine.metrics)
        self.app, self.engine = CloseConnections(app, self.overload), engine
        self.drain, self.listener, self.announce = settings.drain, listener, announce
        config = uvicorn.Config(
            self.app,
            http=partial(Protocol, self.overload),  # pyright: ignore[reportArgumentType]
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            limit_concurrency=_raise_files(),
        )
        super().__init__(config)
        self.code, self._signals = 0, 0
        self._listening = False
        engine.alone(lambda: len(self.server_state.connections) == 1)
        self._starting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def starting(self, start: Coroutine[Any, Any, None]) -> None:
        """Let the engine start while the service listens and says that it is not ready."""
        self._starting = self.loop.create_task(start)
        self._starting.add_done_callback(self._started)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, also one that comes before the start; the second one ends the process."""
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + sig)
        with suppress(RuntimeError):  # the loop has ended
            if self._listening:
                self.loop.call_soon_threadsafe(self._end)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.listener.listen(BACKLOG)
        await super().startup([])
        self.acceptor = Acceptor(self.listener, self._protocol, self.server_state.tasks)
        self._listening = True
        if self._signals:
            self._end()
        self.announce()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self.cut(self.server_state.connections)
        return await super().on_tick(counter)

    def cut(self, connections: Iterable[Any]) -> None:
        """Close connections whose request's head is overdue."""
        now = self.loop.time()
        for one in list(connections):
            if isinstance(one, Protocol) and one.due is not None and one.due < now:
                one.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, answer who has connected already, close what idles."""
        stop_beginning(self.listener)
        await asyncio.sleep(HANDSHAKE)
        self.acceptor.close()
        until = self.loop.time() + NOTICE
        while self.server_state.connections and self.loop.time() < until:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def _started(self, start: asyncio.Task[None]) -> None:
        if start.cancelled() or self._ending is not None:
            return
        if start.exception() is None:
            gc.collect()
            gc.freeze()  # what was made since, which a look through all takes some 10 ms for, is there to stay too
            log.info("ready")
        else:
            log.critical("the models cannot be computed", exc_info=start.exception())
            self.code, self.should_exit = 1, True

    def _end(self) -> None:
        if self._ending is None:
            self._ending = self.loop.create_task(self._drained())

    async def _drained(self) -> None:
        """Answer what was accepted, then let uvicorn end."""
        log.info("draining")
        began = self.loop.time()
        self.app.closing = True
        if self._starting is not None:
            self._starting.cancel()  # where models are measured still, nothing was accepted
        if not await self.engine.drain(max(0.0, self.drain - NOTICE)):
            self.code = 1
            log.warning("requests were given up: they took longer than drain=%g s", self.drain)
        await asyncio.sleep(max(0.0, began + min(NOTICE, self.drain) - self.loop.time()))
        left = max(0.1, began + self.drain - self.loop.time())
        self.config.timeout_graceful_shutdown = max(1, round(left))
        self.should_exit = True

    def _protocol(self) -> asyncio.Protocol:
        given = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        return Protocol(self.overload, **given, _loop=self.loop)


def run(
    app: FastAPI,
    settings: ServeSettings,
    *,
    say: Callable[[str], None],
    open_page: bool = False,
    listener: socket.socket | None = None,
) -> int:
    """Serve until a signal, and return the exit code.

    Args:
        app: Of `create_app`.
        settings: The same that it was made with.
        say: Is told the address, when the service listens there.
        open_page: Whether a browser is told too.
        listener: Of `bound`, where the address was taken before. None: it is taken now.

    Raises:
        UserError: For an address that is not to be had.
    """
    listener = bound(settings.host, settings.port) if listener is None else listener
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    app.state.requests = set_up()

    def announce() -> None:
        say(address)
        if open_page:
            webbrowser.open(address)

    app.state.server = server = Server(app, app.state.engine, settings, listener, announce)
    gc.freeze()  # what was imported and loaded is never looked through again
    with _signals(server):
        if can_fork():
            try:
                app.state.engine.scoring = InProcess(Forker(app.state.engine.models, listener))
                sys.setswitchinterval(SWITCH)
            except OSError as error:
                log.critical("no process can be had (%s): a thread computes", error.strerror)
        try:
            server.run(sockets=[listener])
        finally:
            app.state.engine.scoring.close()
    return server.code


@contextmanager
def _signals(server: Server) -> Iterator[None]:
    """The server handles signals from now on: uvicorn itself lets it do so only while its loop runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def flush_and_exit(code: int) -> NoReturn:
    """End the process at once, with its log lines written."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _raise_files() -> int:
    """The connections that the process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(64, wanted - 256)
