"""What is refused by a request's head alone, and that the connection goes on as if nothing had been (trust row L5)."""

import asyncio
import json
import socket
import time

import pytest

from thalweg.serve.app import create_app
from thalweg.serve.overload import LATE, RECENT
from thalweg.serve.server import Protocol, Server
from thalweg.serve.settings import ServeSettings

from .fake_models import MODELS
from .live import complete, request

BODY = b'{"instances": [[1, 2]]}'


class Wire(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self):
        super().__init__()
        self.data = b""

    def write(self, data):
        self.data += bytes(data)

    def is_closing(self):
        return False

    def resume_reading(self):
        pass

    def pause_reading(self):
        pass

    def get_extra_info(self, name, default=None):
        return default


class Loaded:
    """A service in this loop and one connection to it."""

    def __init__(self):
        settings, listener = ServeSettings(page=False, threads=1), socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.app = create_app({"numbers": MODELS["numbers"]}, settings)
        self.engine = self.app.state.engine
        self.server = Server(self.app, self.engine, settings, listener)
        self.overload, self.wire = self.server.overload, Wire()
        self.server.config.load()
        self.protocol = Protocol(
            self.overload, config=self.server.config, server_state=self.server.server_state, app_state={}
        )
        self.protocol.connection_made(self.wire)

    async def told(self, *parts):
        """Status and body of the answer to these bytes; headers in lower case."""
        self.wire.data = b""
        for part in parts:
            self.protocol.data_received(part)
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while not complete(self.wire.data):
                await asyncio.sleep(0.001)
        head, _, body = self.wire.data.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body) if body[:1] == b"{" else body, head.lower()

    def late(self):
        """The loop came to a request just now, too late."""
        self.overload.started(time.perf_counter() - 2 * LATE)

    def full(self):
        """The engine would refuse a row."""
        self.engine._admission.refusal = lambda *_: ("full", 3.0)


def loaded(run):
    """Runs `run(loaded)` with a started engine."""

    async def main():
        service = Loaded()
        await service.engine.start()
        try:
            await run(service)
        finally:
            await service.engine.drain(5)
            service.server.listener.close()

    asyncio.run(main())


@pytest.mark.parametrize("cause", ["late", "full"])
@pytest.mark.parametrize("cut", [None, 30, 10], ids=["whole", "head in two parts", "body in two parts"])
def test_a_refused_request_leaves_the_connection_as_it_was(cause, cut):
    data = request(BODY)
    parts = (data,) if cut is None else (data[:cut], data[cut:]) if cut == 30 else (data[:-cut], data[-cut:])

    async def run(service):
        assert (await service.told(data))[0] == 200
        getattr(service, cause)()
        status, body, head = await service.told(*parts)
        assert status == 429
        assert body["code"] == "full"
        assert b"retry-after: " in head
        assert b"connection: close" not in head
        assert b"x-content-type-options: nosniff" in head
        service.overload._late = 0.0
        vars(service.engine._admission).pop("refusal", None)
        status, body, _ = await service.told(data)
        assert (status, len(body["predictions"])) == (200, 1)
        text = service.app.state.metrics.text().decode()
        assert 'thalweg_rejected_total{reason="full"} 1.0' in text
        assert 'thalweg_requests_total{code="429",route="/v1/score"} 1.0' in text

    loaded(run)


def test_what_is_no_load_is_never_refused_by_its_head():
    """Reads, long bodies and bodies of unknown length go the ordinary way, and so does all once the end has begun."""

    async def run(service):
        service.late()
        assert (await service.told(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"))[0] == 200
        service.late()
        long = request(b'{"instances": [' + b"[1, 2]," * 150_000 + b"[1, 2]]}")
        assert (await service.told(long))[1]["code"] == "too_many_rows"
        service.engine._draining = True
        service.late()
        status, body, _ = await service.told(request(BODY))
        assert (status, body["code"]) == (503, "draining")

    loaded(run)


def test_a_delay_that_was_long_ago_tells_nothing(monkeypatch):
    async def run(service):
        service.late()
        service.overload._seen -= 2 * RECENT
        assert service.overload.refusal(b"/v1/score") is None

    loaded(run)


def test_a_full_engine_refuses_scores_alone():
    async def run(service):
        service.full()
        assert service.overload.refusal(b"/v1/score").status == 429
        assert service.overload.refusal(b"/v1/sample") is None

    loaded(run)
