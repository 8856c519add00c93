"""A client that sends no more and waits gets its answer; one that has left is noticed by the same end of what it sends
(trust row L7)."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from .fake_models import Numbers
from .forked import until
from .live import listening, request

ROW, HOLDS = b'{"instances": [[1, 2]]}', b'{"instances": [[7, 2]]}'
DRAWS = request(b'{"n": 1, "frames": 4}', path="/v1/sample")
DEAR = 0.01  # seconds of a call, so that none is made on the event loop


class Held(Numbers):
    """Waits in a row of 7, and before the third frame of draws, until it may go."""

    def __init__(self):
        self.go, self.holds, self.rows = threading.Event(), threading.Event(), 0

    def score(self, rows, *, alpha=None):
        time.sleep(DEAR)
        self.rows += len(rows["x"])
        if (rows["x"][:, 0] == 7).any():
            self.holds.set()
            assert self.go.wait(60)
        return super().score(rows, alpha=alpha)

    def sample_frames(self, n, **how):
        for i, frame in enumerate(super().sample_frames(n, **how)):
            if i == 2:
                self.holds.set()
                assert self.go.wait(60)
            yield frame


@contextmanager
def sent(port, data):
    """A connection over which this was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(data)
        yield wire


@contextmanager
def held():
    """(the model, the port, a figure of the metrics)."""
    model = Held()
    with listening(models={"held": model}) as port:

        def figure(name):
            with sent(port, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n") as wire:
                text = whole(wire).decode()
            return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0)

        try:
            yield model, port, figure
        finally:
            model.go.set()


def whole(wire):
    """All that comes until the service closes."""
    found = b""
    while part := wire.recv(65536):
        found += part
    return found


@pytest.mark.parametrize(
    ("path", "status", "count"),
    [("/v1/score", 200, 1), ("/v1/score", 200, 3), ("/v1/rerank", 200, 1), ("/v1/rerank", 200, 3), ("/no", 404, 1)],
)
def test_a_client_that_sends_no_more_gets_its_answers(path, status, count):
    """On the short way of scores, on the framework's, and where it is refused; also of several requests at once."""
    with listening("numbers") as port, sent(port, request(ROW, path=path) * count) as wire:
        wire.shutdown(socket.SHUT_WR)
        found = whole(wire)
    assert found.startswith(b"HTTP/1.1 %d " % status)
    assert found.count(b"HTTP/1.1 ") == count
    assert found.count(b'{"model"' if status == 200 else b'{"code"') == count


def test_a_client_that_left_is_told_from_one_that_waits():
    """Both wait behind a call: what the first asked is never computed, the second is answered."""
    with held() as (model, port, figure), sent(port, request(HOLDS)) as first:
        assert model.holds.wait(20)
        before = model.rows
        with sent(port, request(ROW)) as waits:
            waits.shutdown(socket.SHUT_WR)
            with sent(port, request(ROW)):
                until(lambda: figure("thalweg_queue_depth") == 2)
            until(lambda: figure('thalweg_rejected_total{reason="gone"}') == 1)
            assert figure("thalweg_queue_depth") == 1
            model.go.set()
            assert whole(waits).startswith(b"HTTP/1.1 200 ")
        assert first.recv(9) == b"HTTP/1.1 "
        assert model.rows == before + 1
        assert figure("thalweg_wasted_batches_total") == 0


@pytest.mark.parametrize("when", ["before the answer", "inside it"])
def test_a_stream_goes_on_for_a_client_that_sends_no_more(when):
    with held() as (model, port, _), sent(port, DRAWS) as wire:
        if when == "before the answer":
            wire.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        lines = [answer.readline()]
        if when == "inside it":
            assert model.holds.wait(20)
            wire.shutdown(socket.SHUT_WR)
            time.sleep(2 * DEAR)  # it is seen
        model.go.set()
        lines += [*answer]
        assert [json.loads(line)["last"] for line in lines] == [False, False, False, True]
        assert wire.recv(1) == b""


def test_a_stream_whose_client_left_is_given_up():
    """While the next line is computed, though nothing is sent then."""
    with held() as (model, port, figure):
        with sent(port, DRAWS) as wire, http.client.HTTPResponse(wire) as answer:
            answer.begin()
            assert json.loads(answer.readline())["frame"] == 0
            assert model.holds.wait(20)
            time.sleep(2 * DEAR)  # no line is under way: else the close would be a reset
            assert figure("thalweg_requests_in_progress") == 2
        until(lambda: figure("thalweg_requests_in_progress") == 1)
        assert not model.go.is_set()
