"""Services in processes of their own, from the outside: start, ask, look at, end."""

import http.client
import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

OPENED: list[http.client.HTTPConnection] = []  # closed after each test


class Process:
    """A service that was forked."""

    def __init__(self, parent, *values):
        self.parent = parent
        self.pid, self.code = self._ask("start", *values), None

    def _ask(self, *words):
        self.parent.stdin.write(json.dumps(words) + "\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())

    def signal(self, signum):
        os.kill(self.pid, signum)

    def wait(self):
        if self.code is None:
            self.code = self._ask("wait", self.pid)
        return self.code

    def figures(self):
        """(MiB of memory, open files, threads), of it and of the processes that compute for it."""
        pids = [self.pid, *descendants(self.pid)]
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        rss, threads = (
            sum(int(one.partition(f"{name}:")[2].split()[0]) for one in status) for name in ("VmRSS", "Threads")
        )
        return rss / 1024, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids), threads


def descendants(pid):
    """Processes that were forked by one, and by these."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(file.read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(file.parent.name), *descendants(int(file.parent.name))]
    return found


@contextmanager
def serving(parent, folder, seconds=0.02, *, ready=True, **more):
    """(process, address) of a service of `process.Slow`. `more`: as `process.serve` has it."""
    place = folder / "address"
    process = Process(parent, str(place), str(folder / "log"), seconds, more)
    try:
        until(place.exists)
        address = place.read_text()
        until(lambda: get(address, "/readyz")[0] == 200 or not ready)
        yield process, address
    finally:
        if process.code is None:
            process.signal(signal.SIGKILL)
            process.wait()


def until(condition):
    """Wait for something, 20 seconds at most: the seconds that it took."""
    began = time.monotonic()
    while time.monotonic() < began + 20:
        try:
            if condition():
                return time.monotonic() - began
        except OSError:
            pass
        time.sleep(0.01)
    raise AssertionError("it never came to hold")


def connect(address):
    """A connection that is closed after the test."""
    parts = urlsplit(address)
    OPENED.append(http.client.HTTPConnection(parts.hostname, parts.port, timeout=60))
    return OPENED[-1]


@contextmanager
def beside(address):
    """A connection that stays open: the calls of one client alone are made on the event loop."""
    found = connect(address)
    found.request("GET", "/livez")
    assert found.getresponse().read() == b"ok"
    yield
    found.close()


def get(address, path):
    connection = connect(address)
    connection.request("GET", path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def post(connection, *values, headers=None):
    body = json.dumps({"instances": [[value, 0.0] for value in values]})
    connection.request("POST", "/v1/score", body, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read()), answer.headers
