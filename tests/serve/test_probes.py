"""R27: what an orchestrator is told by `/livez` and `/readyz` of a process in each state, and what ends a state."""

import signal
import threading
from contextlib import contextmanager

import pytest

from .forked import beside, connect, get, post, serving, until
from .process import SLOW

SOON = 5.0  # seconds in which a worker must be replaced


def probes(address):
    """((status, text) of livez, of readyz)."""
    return get(address, "/livez"), get(address, "/readyz")


@contextmanager
def asking(address, *rows):
    """Requests in flight, a thread each; what they found comes into the list."""
    found = []
    threads = [threading.Thread(target=lambda row=row: found.append(post(connect(address), *row)[0])) for row in rows]
    for thread in threads:
        thread.start()
    yield found
    for thread in threads:
        thread.join(60)


def in_progress(address, count):
    """Wait until so many requests are, this one aside."""
    until(lambda: f"thalweg_requests_in_progress {count + 1}" in get(address, "/metrics")[1])


def test_while_the_model_loads(parent, tmp_path):
    with serving(parent, tmp_path, ready=False, loading=1.0) as (process, address):
        assert probes(address) == ((200, "ok"), (503, "loading"))
        status, body, headers = post(connect(address), 1.0)
        assert (status, body["code"]) == (503, "loading")
        assert int(headers["Retry-After"]) >= 1
        until(lambda: probes(address) == ((200, "ok"), (200, "ok")))
        assert post(connect(address), 1.0)[0] == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_worker_that_ends_is_replaced_in_time(parent, tmp_path):
    """The request that ended two workers fails; the service is well within seconds, and goes on."""
    with serving(parent, tmp_path) as (process, address), beside(address):
        assert post(connect(address), -1.0)[0] == 500
        assert until(lambda: probes(address) == ((200, "ok"), (200, "ok"))) < SOON
        assert post(connect(address), 3.0)[1]["predictions"][0]["energy"] == 3
        assert process.code is None


def test_an_exit_on_the_event_loop_is_an_error_of_its_request(parent, tmp_path):
    """A lone client's cheap calls are made there: JSON as for any other error, and the service goes on."""
    with serving(parent, tmp_path, seconds=0.0) as (_, address):
        status, body, _ = post(connect(address), -1.0)
        assert (status, body["code"]) == (500, "internal")
        assert probes(address) == ((200, "ok"), (200, "ok"))
        assert post(connect(address), 3.0)[1]["predictions"][0]["energy"] == 3


def test_while_the_queue_is_full(parent, tmp_path):
    with serving(parent, tmp_path, seconds=1.0, queue=4) as (_, address), beside(address):
        with asking(address, [SLOW]) as first:
            in_progress(address, 1)
            with asking(address, [SLOW, 1.0, 2.0, 3.0]) as second:
                until(lambda: probes(address) == ((200, "ok"), (503, "full")))
                status, body, headers = post(connect(address), 1.0)
                assert (status, body["code"]) == (429, "full")
                assert int(headers["Retry-After"]) >= 1
        until(lambda: probes(address) == ((200, "ok"), (200, "ok")))
        assert first + second == [200, 200]


def test_while_it_drains(parent, tmp_path):
    with (
        serving(parent, tmp_path, seconds=1.0) as (process, address),
        beside(address),
        asking(address, [SLOW]) as found,
    ):
        in_progress(address, 1)
        process.signal(signal.SIGTERM)
        until(lambda: probes(address) == ((200, "ok"), (503, "draining")))
        assert process.wait() == 0
    assert found == [200]


def test_while_a_call_hangs(parent, tmp_path):
    """Not alive after STUCK seconds, here 0.5 of 30; alive again if the call ends after all."""
    with serving(parent, tmp_path, seconds=2.0, stuck=0.5) as (_, address), beside(address):
        with asking(address, [SLOW]) as found:
            in_progress(address, 1)
            assert get(address, "/livez") == (200, "ok")
            until(lambda: get(address, "/livez")[0] == 503)
            (live, why), (ready, _) = probes(address)
            assert (live, ready) == (503, 503)
            assert why.startswith("a worker is stuck for ")
        assert found == [200]
        until(lambda: probes(address) == ((200, "ok"), (200, "ok")))


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_the_protocols_own_probes_say_the_same(parent, tmp_path, path):
    with serving(parent, tmp_path, ready=False, loading=0.5) as (_, address):
        assert get(address, path)[0] == (200 if path.endswith("live") else 503)
        until(lambda: get(address, path)[0] == 200)
