"""What is refused by a request's head alone, and that the connection goes on as if nothing had been (trust row L5)."""

import asyncio
import json
import socket

import pytest

from thalweg.serve.app import create_app
from thalweg.serve.overload import AFTER, AGAIN, BEHIND, SHARE
from thalweg.serve.protocol import Protocol, whole_post
from thalweg.serve.server import Server
from thalweg.serve.settings import ServeSettings

from .fake_models import MODELS
from .live import complete, request

BODY = b'{"instances": [[1, 2]]}'


class Wire(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self):
        super().__init__()
        self.data, self.writes = b"", 0

    def write(self, data):
        self.data += bytes(data)
        self.writes += 1

    def close(self):
        pass

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
        self.protocol = self.connection(self.wire)

    def connection(self, wire):
        """One more."""
        state = self.server.server_state
        found = Protocol(self.overload, config=self.server.config, server_state=state, app_state={})
        found.connection_made(wire)
        return found

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

    def behind(self):
        """As many requests as may be wait for the loop."""
        self.overload.behind = BEHIND

    def full(self):
        """The engine would refuse a row."""
        self.engine._admission.refusal = lambda *_: ("full", 3.0)

    async def recovers(self):
        """Neither holds any longer."""
        self.overload.behind = 0
        vars(self.engine._admission).pop("refusal", None)
        await asyncio.sleep(3 * AGAIN)


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


@pytest.mark.parametrize("cause", ["behind", "full"])
@pytest.mark.parametrize("cut", [None, 30, 10], ids=["whole", "head in two parts", "body in two parts"])
def test_a_refused_request_leaves_the_connection_as_it_was(cause, cut):
    data = request(BODY)
    parts = (data,) if cut is None else (data[:cut], data[cut:]) if cut == 30 else (data[:-cut], data[-cut:])

    async def run(service):
        assert (await service.told(data))[0] == 200
        getattr(service, cause)()
        service.protocol = service.connection(service.wire)  # nothing was asked there before
        for _ in range(3):  # the first one is parsed, those that follow it need not be
            status, body, head = await service.told(*parts)
            assert (status, body["code"]) == (429, "full")
            assert b"retry-after: " in head
            assert b"connection: close" not in head
            assert b"x-content-type-options: nosniff" in head
            assert service.protocol.timeout_keep_alive_task.when() > asyncio.get_running_loop().time() + 60
        await service.recovers()
        status, body, _ = await service.told(data)
        assert (status, len(body["predictions"])) == (200, 1)
        assert service.overload.behind == 0
        text = service.app.state.metrics.text().decode()
        assert 'thalweg_rejected_total{reason="full"} 3.0' in text
        assert 'thalweg_requests_total{code="429",route="/v1/score"} 3.0' in text

    loaded(run)


def test_what_is_no_load_is_never_refused_by_its_head():
    """Reads, long bodies and bodies of unknown length go the ordinary way, and so does all once the end has begun."""

    async def run(service):
        service.behind()
        assert (await service.told(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"))[0] == 200
        service.behind()
        long = request(b'{"instances": [' + b"[1, 2]," * 150_000 + b"[1, 2]]}")
        assert (await service.told(long))[1]["code"] == "too_many_rows"
        service.engine._draining = True
        service.behind()
        status, body, _ = await service.told(request(BODY))
        assert (status, body["code"]) == (503, "draining")

    loaded(run)


def test_a_full_engine_refuses_scores_alone():
    async def run(service):
        service.full()
        assert service.overload.refusal(b"/v1/score", []).startswith(b"HTTP/1.1 429 ")
        assert service.overload.refusal(b"/v1/sample", []) is None

    loaded(run)


@pytest.mark.parametrize(("refused", "most"), [(0, BEHIND), (1, AFTER), (SHARE * 2 * BEHIND, 2 * BEHIND)])
def test_what_waits_for_the_loop_is_counted(refused, most):
    """Many connections ask in one turn of the loop: those beyond the bound are refused, the others are scored.

    Fewer are let in after a turn that refused some, and more again where it refused far more than it let in.
    """

    async def run(service):
        data = request(BODY)
        service.behind()
        for _ in range(refused):
            assert service.overload.refusal(b"/v1/score", []) is not None
        service.overload.behind = 0  # a new turn
        wires = [Wire() for _ in range(most + 10)]
        for wire in wires:
            service.connection(wire).data_received(data)
        async with asyncio.timeout(20):
            while not all(complete(wire.data) for wire in wires):
                await asyncio.sleep(0.001)
        statuses = [int(wire.data.split()[1]) for wire in wires]
        assert statuses == [200] * most + [429] * 10

    loaded(run)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (request(BODY), b"/v1/score"),
        (request(BODY)[:-1], None),
        (request(BODY) + b"x", None),
        (request(BODY, transfer_encoding="chunked"), None),
        (request(BODY, connection="close"), None),
        (request(BODY, expect="100-continue"), None),
        (request(BODY, **{"Content_Length": str(len(BODY))}), None),
        (request(BODY, content_length=None), None),
        (request(BODY, path="/v1/score?model=numbers"), None),
        (request(BODY).replace(b"POST", b"PUT"), None),
    ],
)
def test_only_whole_and_plain_requests_are_not_parsed(data, path):
    assert whole_post(data) == path


def test_an_answer_leaves_in_one_write():
    """Head and body, and a head that has no body."""

    async def run(service):
        for data in (request(BODY), b"HEAD /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"):
            service.wire.writes, service.wire.data = 0, b""
            service.protocol.data_received(data)
            async with asyncio.timeout(20):
                while not service.wire.data:
                    await asyncio.sleep(0.001)
            assert service.wire.writes == 1

    loaded(run)


def test_an_answer_without_messages_is_the_same():
    """Scores by the short way and by the ordinary one: status, headers and body, and the connection is kept."""

    async def run(service):
        found = []
        for path in ("/v1/score", "/v1/score?model=numbers", "/v1/score"):
            _, body, head = await service.told(request(BODY, path=path))
            lines = sorted(line for line in head.split(b"\r\n") if not line.startswith((b"x-request-id", b"date")))
            found.append((lines, body))
        assert found[0] == found[1] == found[2]
        assert "extensions" not in service.protocol.cycle.scope

    loaded(run)


def test_answers_of_requests_that_follow_each_other_unasked():
    """Two heads in one read: each is answered, in order, though the second is read before the first has its answer."""

    async def run(service):
        head = b"HEAD /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
        service.protocol.data_received(head + head + request(BODY))
        async with asyncio.timeout(20):
            while b"predictions" not in service.wire.data:
                await asyncio.sleep(0.001)
        assert service.wire.data.count(b"HTTP/1.1 200 OK\r\n") == 3

    loaded(run)


def test_a_score_at_the_end_of_the_service_ends_its_connection():
    async def run(service):
        score = service.engine.score

        async def late(*given, **more):
            found = await score(*given, **more)
            service.server.app.closing = service.engine._draining = True
            return found

        service.engine.score = late
        status, _, head = await service.told(request(BODY))
        assert (status, b"connection: close" in head) == (200, True)

    loaded(run)


def test_a_body_in_tiny_chunks_is_given_up():
    """Chunks of a byte cost the loop microseconds each: 400 once there are many; larger ones are read."""

    async def run(service):
        head = request(b"", content_length=None, transfer_encoding="chunked")
        status, body, answer = await service.told(head, b"1\r\nx\r\n" * 40_000)
        assert (status, body["code"]) == (400, "malformed")
        assert "16 bytes" in body["message"]
        assert b"connection: close" in answer
        service.protocol = service.connection(service.wire)
        parts = [b'{"instances": [', *[b"[1, 2],"] * 1023, b"[1, 2]]}", b""]  # a row a chunk
        lines = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        assert (await service.told(head, lines))[0] == 200

    loaded(run)
