"""R19: clients that send too much, too slowly or in tiny chunks cost neither memory nor the others' time.

Long; `test_safety.py` has the short forms, of what is read before a refusal.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from .forked import beside, connect, post, serving

pytestmark = pytest.mark.slow
FLOOD = Path(__file__).with_name("flood.py")
TURNS, REQUESTS = 6, 250
MIB = 2**20


def seconds_of(connection, count):
    """Of requests of a good client, one after another."""
    took = np.empty(count)
    for number in range(count):
        began = time.perf_counter()
        status, body, _ = post(connection, float(number))
        took[number] = time.perf_counter() - began
        assert (status, body["predictions"][0]["energy"]) == (200, number)
    return took


@pytest.mark.parametrize("kind", ["chunks", "slow"])
def test_others_are_answered_as_fast(parent, tmp_path, kind):
    """p99 beside the flood is at most twice the p99 without it, by turns."""
    idle, flooded, said = [], [], []
    with serving(parent, tmp_path, seconds=0.005) as (_, address), beside(address):
        connection, port = connect(address), urlsplit(address).port
        seconds_of(connection, 50)
        for _ in range(TURNS):
            idle.append(seconds_of(connection, REQUESTS))
            command = [sys.executable, str(FLOOD), str(port), kind]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
                assert flood.stdout.readline() == "begun\n"
                flooded.append(seconds_of(connection, REQUESTS))
                flood.kill()
                said += flood.stdout.read().split("\n")
    quantiles = [np.quantile(np.concatenate(each), (0.5, 0.99)) * 1000 for each in (idle, flooded)]
    ratio = quantiles[1][1] / quantiles[0][1]
    told = " and ".join(f"p50 {a:.1f} p99 {b:.1f} ms" for a, b in quantiles)
    sys.stderr.write(f"R19 {kind}: {told}, ratio {ratio:.2f}; bodies: {[one for one in said if one[:1].isdigit()]}\n")
    assert ratio <= 2


def test_a_thousand_bodies_that_are_too_large(parent, tmp_path):
    """413 within 100 ms, by the declared length and while it streams; 50 MB of memory at most."""
    heads = ("Content-Length: 1000000000", "Transfer-Encoding: chunked")
    part = b"10000\r\n" + bytes(65_536) + b"\r\n"
    with serving(parent, tmp_path, seconds=0.0) as (process, address):
        port = urlsplit(address).port
        took = []

        def refused(head):
            text = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
                wire.sendall(text.encode())
                if "chunked" in head:
                    for _ in range(8 * MIB // 65_536 + 1):
                        wire.sendall(part)
                began = time.perf_counter()
                answer = wire.recv(65_536)
                took.append(time.perf_counter() - began)
            assert answer.startswith(b"HTTP/1.1 413 "), answer

        for head in heads * 10:
            refused(head)
        before = process.figures()[0]
        took.clear()
        for number in range(1000):
            refused(heads[number % 2])
        growth = process.figures()[0] - before
    p99, most = np.quantile(took, 0.99) * 1000, max(took) * 1000
    sys.stderr.write(f"R19: 413 after p99 {p99:.1f} ms, at most {most:.1f} ms; memory {growth:+.1f} MiB\n")
    assert growth <= 50
    assert p99 <= 100
