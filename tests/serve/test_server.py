"""The process: what is answered while it ends, and how it ends (trust rows R26, R27, R28, R29)."""

import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest

from .forked import beside, connect, get, post, serving, until

SOAK = float(os.environ.get("THALWEG_SOAK", "1800"))  # seconds of the long run
FULL = 1800.0


def ended(address):
    """Ask, and be cut off."""
    with pytest.raises((OSError, http.client.HTTPException)):
        post(connect(address), 7.0)


def client(address, number, seen, stop):
    """Ask again and again, each answer checked by its nonce; a refused connection is told from a reset one."""
    connection, opened = connect(address), time.monotonic()
    while not stop.is_set():
        nonce, asked = float(number * 1_000_000 + len(seen)), time.monotonic()
        try:
            if connection.sock is None:
                connection.connect()
                opened = time.monotonic()
            status, body, headers = post(connection, nonce)
        except ConnectionRefusedError:
            seen.append("refused")
            return
        except (ConnectionError, http.client.HTTPException) as error:
            now = time.monotonic()
            seen.append(f"{error!r}, asked at {asked:.3f}, opened at {opened:.3f}, lost at {now:.3f}")
            return
        if status == 200:
            assert body["predictions"][0]["energy"] == nonce
        if status in (429, 503):
            assert int(headers["Retry-After"]) >= 1
        seen.append(status)
        if headers.get("Connection") == "close":
            connection.close()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("repetitions", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_a_signal_under_load_loses_no_answer(parent, tmp_path, repetitions, processes):
    """R26: 50 clients; every accepted request is answered, later ones get 503 with Retry-After or are refused."""
    for repetition in range(repetitions):
        folder = tmp_path / str(repetition)
        folder.mkdir()
        with serving(parent, folder, seconds=0.005, each=True, processes=processes) as (process, address):
            seen, stop = [[] for _ in range(50)], threading.Event()
            threads = [threading.Thread(target=client, args=(address, i, seen[i], stop)) for i in range(50)]
            for thread in threads:
                thread.start()
            until(lambda seen=seen: all(len(one) >= 2 for one in seen))
            process.signal(signal.SIGTERM)
            told = time.monotonic()
            until(lambda address=address: get(address, "/readyz")[0] == 503)
            assert get(address, "/livez")[0] == 200
            assert process.wait() == 0
            over = time.monotonic()
            stop.set()
            for thread in threads:
                thread.join(30)
            counts = Counter(word for one in seen for word in one)
            # 429: on a busy machine too much may have waited before the signal.
            assert set(counts) <= {200, 429, 503, "refused"}, (repetition, f"{told:.3f} to {over:.3f}", counts)
            assert counts[503] > 0


def test_a_second_signal_ends_at_once(parent, tmp_path):
    """R26."""
    with serving(parent, tmp_path, seconds=40, drain=60) as (process, address), beside(address):
        thread = threading.Thread(target=ended, args=(address,))
        thread.start()
        until(lambda: "thalweg_requests_in_progress 2" in get(address, "/metrics")[1])
        process.signal(signal.SIGTERM)
        until(lambda: get(address, "/readyz")[0] == 503)
        process.signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        thread.join(30)


def test_a_signal_while_models_are_measured_is_a_drain_alone(parent, tmp_path):
    """Nothing was accepted, so there is nothing to wait for, and no fault."""
    with serving(parent, tmp_path, ready=False, loading=3.0, drain=1.5) as (process, address):
        assert get(address, "/readyz") == (503, "loading")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["message"] for line in lines if "message" in line] == ["draining"]


@pytest.mark.parametrize(("when", "number"), [("signals", signal.SIGINT), ("early", signal.SIGTERM)])
def test_a_signal_at_the_address_is_a_drain(parent, tmp_path, number, when):
    """As soon as the address is told the service listens there, and a signal ends it without a traceback."""
    with serving(parent, tmp_path, ready=False, drain=0.2, **{when: [int(number)]}) as (process, _):
        assert process.wait() == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line for line in lines if line.get("level", "info") != "info"] == []
    assert "draining" in [line.get("message") for line in lines]


def test_work_that_takes_too_long_is_given_up_and_the_code_says_so(parent, tmp_path):
    with serving(parent, tmp_path, seconds=4, drain=1.5) as (process, address), beside(address):
        found = []
        thread = threading.Thread(target=lambda: found.append(post(connect(address), 7.0)[0]))
        thread.start()
        until(lambda: "thalweg_requests_in_progress 2" in get(address, "/metrics")[1])
        process.signal(signal.SIGTERM)
        assert process.wait() == 1
        thread.join(30)
        assert found == [503]


def test_a_worker_that_ends_is_replaced_and_the_service_goes_on(parent, tmp_path):
    """R27: alive again within seconds; the request that ended it gets an error, the next one its answer."""
    with serving(parent, tmp_path) as (process, address):
        connection = connect(address)
        assert post(connection, -1.0)[0] == 500
        until(lambda: get(address, "/livez")[0] == 200)
        assert post(connection, 3.0)[1]["predictions"][0]["energy"] == 3
        assert process.code is None


@pytest.mark.parametrize("seconds", [1.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_counters_are_what_clients_saw(parent, tmp_path, seconds):
    """R28: good requests, wrong ones and unknown paths, by route and code, exactly; log lines are as many."""
    with serving(parent, tmp_path, seconds=0.001) as (_, address):
        told, lock = Counter(), threading.Lock()

        def ask(seed):
            generator, connection = np.random.default_rng(seed), connect(address)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if generator.random() < 0.025:
                    connection.request("GET", f"/{generator.integers(1000)}")
                    answer = connection.getresponse()
                    answer.read()
                    found = ("other", answer.status)
                else:
                    good = generator.random() > 0.025
                    status, _, _ = post(connection, *([1.0] if good else []))
                    found = ("/v1/score", status)
                with lock:
                    told[found] += 1

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 60)
        text = get(address, "/metrics")[1]
        for (route, code), count in told.items():
            assert f'thalweg_requests_total{{code="{code}",route="{route}"}} {count:.1f}' in text
        total, good = sum(told.values()), told["/v1/score", 200]
        sys.stderr.write(f"R28: {total} requests, {1 - good / total:.1%} wrong: {dict(told)}\n")
        assert {200, 400, 404} <= {code for _, code in told}
        lines = (tmp_path / "log").read_text().splitlines()
        requests = [json.loads(line) for line in lines if '"route"' in line]
        assert sum(one["route"] in ("/v1/score", "other") for one in requests) == total
        assert {one["rows"] for one in requests if one["code"] == 200 and one["route"] == "/v1/score"} == {1}


@pytest.mark.slow
def test_a_hundred_thousand_unknown_paths_make_no_label(parent, tmp_path):
    """R28: at most 200 series of any metric; `test_metrics.py` has the short form."""
    with serving(parent, tmp_path, seconds=0.0) as (_, address):

        def ask(seed):
            generator, connection = np.random.default_rng(seed), connect(address)
            for _ in range(100_000 // 8):
                path = "".join(generator.choice([*"ab/%.01"], 6))
                method = str(generator.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))
                connection.request(method, f"/v{generator.integers(4)}/{path}".replace("%", "%25"))
                connection.getresponse().read()

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        text = get(address, "/metrics")[1]
    names = Counter(line.partition("{")[0] for line in text.splitlines() if "{" in line)
    counted = sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if "requests_total{" in line)
    sys.stderr.write(f"R28: {counted:.0f} requests, at most {max(names.values())} series of a metric\n")
    assert max(names.values()) <= 200
    assert counted >= 100_000


def test_a_head_that_never_ends_is_cut_off():
    """A connection without a whole head is not kept."""
    import asyncio

    from thalweg.serve import server
    from thalweg.serve.protocol import Protocol

    class Transport:
        aborted = False

        def abort(self):
            self.aborted = True

    async def test():
        one = server.Server.__new__(server.Server)
        one.loop = asyncio.get_running_loop()
        late, early = (Protocol.__new__(Protocol) for _ in range(2))
        late.due, early.due = one.loop.time() - 1, one.loop.time() + 60
        late.transport, early.transport = Transport(), Transport()
        one.cut([late, early])
        assert (late.transport.aborted, early.transport.aborted) == (True, False)

    asyncio.run(test())


@pytest.mark.slow
def test_hours_of_load_leave_nothing_behind(parent, tmp_path):
    """R29, for THALWEG_SOAK seconds: memory grows by 1 MB in 10 minutes at most, files and threads not at all."""
    with serving(parent, tmp_path, seconds=0.005, each=True, processes=2) as (process, address):
        errors, stop, samples = [], threading.Event(), []

        def ask():
            connection = connect(address)
            while not stop.is_set():
                status = post(connection, 1.0)[0]
                if status != 200:
                    errors.append(status)
                time.sleep(0.01)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(SOAK / 5)  # warm-up
        end = time.monotonic() + SOAK * 4 / 5
        while time.monotonic() < end:
            samples.append((time.monotonic(), *process.figures()))
            time.sleep(SOAK / 300)
        stop.set()
        for thread in threads:
            thread.join(30)
        when, rss, files, workers = np.array(samples).T
        slope = 600 * np.polyfit(when, rss, 1)[0]
        told = f"{slope:+.2f} MiB in 10 minutes, {files.min():g} to {files.max():g} files, {workers.max():g} threads"
        sys.stderr.write(f"{SOAK:.0f} s: {told}\n")
        assert not errors
        assert slope <= 1 if SOAK >= FULL else rss[-1] - rss[0] <= 4
        assert np.ptp(files) <= 1
        assert np.ptp(workers) == 0
