"""Clients that mean harm, in a process of their own: `python flood.py PORT chunks|slow`; a line when they have begun.

`chunks`: one body of 3,000,000 chunks of a byte after another. `slow`: 50 bodies of which a byte a second comes.
"""

import contextlib
import socket
import sys
import time

CHUNKS, SLOW = 3_000_000, 50
HEAD = "POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{}\r\n\r\n"


def begun(port, header):
    """A connection that has sent a head."""
    wire = socket.create_connection(("127.0.0.1", port))
    wire.sendall(HEAD.format(header).encode())
    return wire


def chunks(port):
    """As fast as the service reads; the status of each body."""
    part = b"1\r\nx\r\n" * 10_000
    while True:
        with begun(port, "Transfer-Encoding: chunked") as wire:
            say("begun")
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for _ in range(CHUNKS // 10_000):
                    wire.sendall(part)
                wire.sendall(b"0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                say(f"{wire.recv(65536).split()[1].decode()} {time.monotonic() - began:.1f}")


def slow(port):
    """A byte a second each; one that is refused begins anew."""
    wires = [begun(port, "Content-Length: 1000") for _ in range(SLOW)]
    say("begun")
    while True:
        for number, wire in enumerate(wires):
            try:
                wire.sendall(b"[")
            except OSError:
                wires[number] = begun(port, "Content-Length: 1000")
        time.sleep(1)


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"chunks": chunks, "slow": slow}[sys.argv[2]](int(sys.argv[1]))
