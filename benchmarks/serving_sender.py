"""The sender of the open loops of serving.py: requests on a fixed schedule, whatever the answers do.

    python benchmarks/serving_sender.py < REQUEST      # JSON: host, port, data (base64), rate, seconds; prints JSON

One thread and plain sockets, as a sender that costs much takes the processor from the server that it measures. A
request goes out when it is due, on a connection that is free or on a new one. Its latency counts from when it was due,
and `slip` says how late it was sent.
"""

import base64
import contextlib
import gc
import json
import resource
import select
import socket
import sys
import time
from typing import Any

import numpy as np

BEHIND = 20.0  # seconds after the last request in which answers are waited for
PULSE = 0.1  # seconds at most between looks for the end
LATE = 0.0003  # seconds that a request may be late: a sender that wakes for each takes the server's processor
FILES = 60_000
WARM = 256  # connections that are there before the first request, as a load balancer has them
BROKEN = 0  # in place of a status


class Connection:
    """One keep-alive connection."""

    __slots__ = ("data", "number", "wire")

    def __init__(self, wire: socket.socket):
        self.wire, self.data, self.number = wire, b"", -1


class Sender:
    """All connections to one address.

    Args:
        address: Host and port.
        request: The bytes of a request.
        rate: Requests a second.
        total: Requests.
    """

    def __init__(self, address: tuple[str, int], request: bytes, rate: float, total: int):
        self.address, self.request, self.rate, self.total = address, request, rate, total
        self.epoll = select.epoll()
        self.free: list[Connection] = []
        self.every: dict[int, Connection] = {}
        self.due, self.sent, self.came = np.zeros(total), np.zeros(total), np.zeros(total)
        self.status, self.retry = np.full(total, -1), np.zeros(total, bool)
        self.answered = self.next = 0

    def run(self) -> dict[str, Any]:
        """Send, wait for the answers, and say what came."""
        gc.disable()
        for _ in range(WARM):
            connection = self._connection(socket.create_connection(self.address))
            self.epoll.register(connection.wire.fileno(), select.EPOLLIN)
            self.free.append(connection)
        time.sleep(1.0)
        began = time.perf_counter() + 0.1
        self.due[:] = began + np.arange(self.total) / self.rate
        cpu, sending = time.process_time(), True
        until, share, due = began + self.total / self.rate + BEHIND, 0.0, self.due.tolist()
        while self.answered < self.total and time.perf_counter() < until:
            while sending and due[self.next] <= time.perf_counter():
                self._send(self.next)
                self.next += 1
                if self.next == self.total:
                    sending, share = False, (time.process_time() - cpu) / (time.perf_counter() - began)
            came = self.epoll.poll(0)
            for file, event in came:
                self._event(self.every[file], event)
            if not came:
                self._wait(due[self.next] if sending else until)
        known = self.status >= 0
        return {
            "sent": self.total,
            "slip": float(np.percentile(self.sent - self.due, 99)),
            "cpu": share,
            "connections": len(self.every),
            "due": (self.due - began)[known].tolist(),
            "latency": (self.came - self.due)[known].tolist(),
            "status": self.status[known].tolist(),
            "retry": self.retry[known].tolist(),
        }

    def _wait(self, due: float) -> None:
        """For an answer, or until a request is due: by select, whose time is in microseconds and epoll's in ms."""
        select.select([self.epoll], [], [], min(max(due - time.perf_counter(), LATE), PULSE))

    def _send(self, number: int) -> None:
        self.sent[number] = time.perf_counter()
        if self.free:
            connection = self.free.pop()
            connection.number = number
            self._write(connection)
            return
        try:
            connection = self._connection(socket.socket())
        except OSError:  # no more files
            self.came[number], self.status[number] = time.perf_counter(), BROKEN
            self.answered += 1
            return
        connection.number = number
        with contextlib.suppress(BlockingIOError):
            connection.wire.connect(self.address)
        self.epoll.register(connection.wire.fileno(), select.EPOLLOUT)

    def _connection(self, wire: socket.socket) -> Connection:
        wire.setblocking(False)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self.every[wire.fileno()] = Connection(wire)
        return connection

    def _write(self, connection: Connection) -> None:
        """A free connection has room for a whole request."""
        try:
            if connection.wire.send(self.request) != len(self.request):
                raise OSError("a request does not fit into a socket")
        except OSError:
            self._close(connection)

    def _event(self, connection: Connection, event: int) -> None:
        if event & select.EPOLLOUT:
            self.epoll.modify(connection.wire.fileno(), select.EPOLLIN)
            return self._write(connection)
        try:
            data = connection.wire.recv(65_536)
        except OSError:
            data = b""
        if not data:
            return self._close(connection)
        data = connection.data + data
        head, end, rest = data.partition(b"\r\n\r\n")
        lower = head.lower()
        if not end or len(rest) < int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            connection.data = data
            return None
        self._answered(connection, int(head[9:12]), b"retry-after:" in lower)
        if b"connection: close" in lower:
            return self._close(connection)
        connection.data = b""
        return self.free.append(connection)

    def _answered(self, connection: Connection, status: int, retry: bool) -> None:
        number, connection.number = connection.number, -1
        self.came[number], self.status[number], self.retry[number] = time.perf_counter(), status, retry
        self.answered += 1

    def _close(self, connection: Connection) -> None:
        if connection.number >= 0:
            self._answered(connection, BROKEN, False)
        with contextlib.suppress(ValueError):
            self.free.remove(connection)
        del self.every[connection.wire.fileno()]
        connection.wire.close()


def main() -> None:
    """Read what to send, and print what came."""
    told = json.load(sys.stdin)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    total = int(told["rate"] * told["seconds"])
    sender = Sender((told["host"], told["port"]), base64.b64decode(told["data"]), told["rate"], total)
    print(json.dumps(sender.run()))


if __name__ == "__main__":
    main()
