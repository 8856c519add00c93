"""Load on the service: closed loops beside plain FastAPI and LitServe, and open loops that do not wait for answers.

    python benchmarks/serving.py closed RUN [--litserve PYTHON] [--connections 64] [--rounds 5] [--seconds 5]
    python benchmarks/serving.py open RUN [--seconds 60]
    python benchmarks/serving.py draws RUN [--connections 4] [--rounds 3]

`closed` starts the servers of serving_beside.py, lets each run alone for some seconds a round by `wrk`
(`apt-get install wrk`), and prints medians of the rounds' ratios. `open` sends on a fixed schedule by
serving_sender.py,
and counts latency from the time that a request was due, so that a server that falls behind cannot hide it: at .5, 2 and
4 times the capacity, in a storm of 1,000 connections that try again at once, and over a stall of 5 s. A row is not
valid where the sender itself was late: its p99 must be below 20 ms. `draws`: a closed loop of scores alone, and beside
a client that asks for draws again and again.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
SLIP = 0.02  # seconds that the sender may be late, p99
LUA = """
wrk.method, wrk.headers["Content-Type"] = "POST", "{media}"
local file = io.open("{body}", "rb"); wrk.body = file:read("*a"); file:close()
done = function(s, latency, requests)
  local e = s.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\\n", s.requests, s.duration, e.status,
    e.connect + e.read + e.write + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


class Body(NamedTuple):
    """A request's body, and where it goes."""

    media: str
    data: bytes
    path: str = "/v1/score"


class Closed(NamedTuple):
    """What a closed loop gave: answers a second, milliseconds, errors, and the server's CPU milliseconds an answer."""

    rate: float
    p50: float
    p99: float
    errors: int
    cpu: float


class Server:
    """A process that serves, until the block ends."""

    def __init__(self, kind: str, model: str, port: int, python: str = sys.executable, options: tuple[str, ...] = ()):
        self.kind, self.port = kind, port
        script = "serving_litserve.py" if kind == "litserve" else "serving_beside.py"
        command = [python, str(HERE / script), kind, model, str(port), *options]
        env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=env, start_new_session=True)

    def wait(self, body: Body, seconds: float = 240) -> None:
        """Until it answers."""
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                request = urllib.request.Request(self.url(body), body.data, {"Content-Type": body.media})
                return urllib.request.urlopen(request, timeout=10).close()
            if time.monotonic() > until or self.process.poll() is not None:
                self.log.seek(0)
                raise SystemExit(f"{self.kind} does not answer: {self.log.read().decode()[-2000:]}")
            time.sleep(0.3)

    def url(self, body: Body) -> str:
        """Where a body goes."""
        path = "/npy" if body.media == "application/x-npy" and self.kind in ("blocking", "threadpool") else body.path
        return f"http://127.0.0.1:{self.port}{path}"

    def pids(self) -> list[int]:
        """Of all processes of the server."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[3]) == self.process.pid:
                    found.append(int(path.parent.name))
        return found

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        return total / os.sysconf("SC_CLK_TCK")

    def rss(self) -> float:
        """MiB of memory of the first process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def body_of(model: str, kind: str) -> Body:
    """One row: a digit's size in uint8 (base64 in JSON) or float32 (npy), or 8 numbers."""
    generator = np.random.default_rng(0)
    if model == "tiny":
        x = generator.random((1, 8), dtype=np.float32)
        instances: Any = x.tolist()
    else:
        x = generator.random((1, 1, 28, 28), dtype=np.float32)
        pixels = (255 * x[0]).astype(np.uint8)
        instances = [{"shape": list(pixels.shape), "data": base64.b64encode(pixels.tobytes()).decode()}]
    if kind == "npy":
        file = io.BytesIO()
        np.save(file, x)
        return Body("application/x-npy", file.getvalue())
    return Body("application/json", json.dumps({"instances": instances}).encode())


def closed(server: Server, body: Body, connections: int, seconds: float) -> Closed:
    """A closed loop by wrk: each connection asks again once it is answered."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "body").write_bytes(body.data)
        script = Path(folder) / "post.lua"
        script.write_text(LUA.replace("{media}", body.media).replace("{body}", f"{folder}/body"))
        began = server.cpu()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
        ]
        told = subprocess.run([*command, server.url(body)], capture_output=True, text=True, check=True).stdout
        used = server.cpu() - began
    numbers = [int(word) for word in told.partition("RESULT ")[2].split()]
    requests, duration, status, broken, p50, p99 = numbers
    good = requests - status
    return Closed(1e6 * good / duration, p50 / 1e3, p99 / 1e3, status + broken, 1e3 * used / max(good, 1))


def request_of(server: Server, body: Body, deadline: float) -> bytes:
    """The bytes of a request."""
    host, _, path = server.url(body).removeprefix("http://").partition("/")
    told = {"Host": host, "Content-Type": body.media, "Content-Length": str(len(body.data))}
    told["Request-Timeout-Ms"] = str(int(1e3 * deadline))
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST /{path} HTTP/1.1\r\n{lines}\r\n".encode() + body.data


def open_loop(server: Server, body: Body, rate: float, seconds: float, deadline: float) -> dict[str, Any]:
    """An open loop in a process of its own."""
    data = base64.b64encode(request_of(server, body, deadline)).decode()
    told = {"host": "127.0.0.1", "port": server.port, "data": data, "rate": rate, "seconds": seconds}
    command, began = [sys.executable, str(HERE / "serving_sender.py")], server.cpu()
    done = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, check=True)
    return summary(json.loads(done.stdout), seconds, deadline) | {"server_cpu": (server.cpu() - began) / seconds}


def summary(found: dict[str, Any], seconds: float, deadline: float) -> dict[str, Any]:
    """Figures of an open loop. CPU is in cores."""
    latency, status, retry = (np.array(found[name]) for name in ("latency", "status", "retry"))
    good, refused = latency[status == 200], latency[status == 429]
    return {
        "goodput": float((good <= deadline).sum() / seconds),
        "p50_ms": quantile(good, 50),
        "p99_ms": quantile(good, 99),
        "refused_p99_ms": quantile(refused, 99),
        "refused_without_retry_after": int((~retry[status == 429]).sum()),
        "statuses": dict(sorted(Counter(map(str, found["status"])).items())),
        "unanswered": found["sent"] - len(status),
        "connections": found["connections"],
        "sender_cpu": found["cpu"],
        "slip_p99_ms": 1e3 * found["slip"],
        "valid": found["slip"] <= SLIP,
        "by_second": by_second(np.array(found["due"])[status == 200], good),
    }


def quantile(seconds: np.ndarray, percent: float) -> float | None:
    """In ms; None of nothing."""
    return 1e3 * float(np.percentile(seconds, percent)) if len(seconds) else None


def by_second(due: np.ndarray, latency: np.ndarray) -> list[float | None]:
    """p99 in ms of the requests that were due in each second."""
    each = [latency[due.astype(int) == i] for i in range(int(due.max(initial=-1)) + 1)]
    return [None if (found := quantile(one, 99)) is None else round(found, 1) for one in each]


def own(options: argparse.Namespace) -> tuple[str, ...]:
    """Settings of our server."""
    return () if options.processes is None else (f"processes={options.processes}",)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Closed loops of all servers by turns."""
    kinds = ["ours", "blocking", "threadpool", *(["litserve"] if options.litserve else [])]
    body = body_of(options.model, options.body)
    servers = []
    try:
        for i, kind in enumerate(kinds):
            python = options.litserve if kind == "litserve" else sys.executable
            servers.append(
                Server(kind, options.model, options.port + i, python, own(options) if kind == "ours" else ())
            )
            servers[-1].wait(body)
            closed(servers[-1], body, options.connections, 1)
        rounds: list[dict[str, Closed]] = []
        for number in range(options.rounds):
            turn = servers[number % len(servers) :] + servers[: number % len(servers)]
            found = {server.kind: closed(server, body, options.connections, options.seconds) for server in turn}
            rounds.append(found)
            print({kind: [round(v, 2) for v in one] for kind, one in found.items()}, file=sys.stderr, flush=True)
    finally:
        for server in servers:
            server.stop()
    return {"connections": options.connections, "body": options.body, "model": options.model, **ratios(rounds, kinds)}


def ratios(rounds: list[dict[str, Closed]], kinds: list[str]) -> dict[str, Any]:
    """Medians over the rounds, and of the rounds' ratios to ours."""
    table = {}
    for kind in kinds:
        own = {name: statistics.median(getattr(one[kind], name) for one in rounds) for name in Closed._fields}
        beside = {
            f"ours / it, {name}": statistics.median(
                getattr(one["ours"], name) / getattr(one[kind], name) for one in rounds
            )
            for name in ("rate", "p50", "p99", "cpu")
        }
        table[kind] = {name: round(value, 3) for name, value in {**own, **beside}.items()}
    return table


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Open loops on our server: L4 to L6 and L8."""
    body, seconds, deadline = body_of(options.model, options.body), options.seconds, options.deadline
    server = Server("ours", options.model, options.port, options=own(options))
    table: dict[str, Any] = {}

    def row(name: str, found: dict[str, Any]) -> None:
        table[name] = found | {"rss_mib": round(server.rss(), 1)}
        shown = {key: value for key, value in table[name].items() if key != "by_second"}
        print(name, json.dumps(shown), file=sys.stderr, flush=True)

    try:
        server.wait(body)
        closed(server, body, 64, 2)
        alone = closed(server, body, 1, 2)
        full = closed(server, body, 64, min(seconds, 10))
        table["capacity"], table["alone"] = full._asdict(), alone._asdict()
        print(table, file=sys.stderr, flush=True)
        for factor in options.factors:
            row(f"{factor} x capacity", open_loop(server, body, factor * full.rate, seconds, deadline))
        storm = closed(server, body, 1000, min(seconds, 15))
        table["storm"] = storm._asdict() | {"goodput / capacity": storm.rate / full.rate}
        print("storm", table["storm"], file=sys.stderr, flush=True)
        row("0.5 x capacity after the storm", open_loop(server, body, 0.5 * full.rate, max(8, seconds / 4), deadline))
        stall = subprocess.Popen(["sh", "-c", f"sleep 5; kill -USR1 {max(server.pids())}"])
        row("0.8 x capacity, a stall of 5 s after 5 s", open_loop(server, body, 0.8 * full.rate, 25, deadline))
        stall.wait()
        print("p99 by second", table["0.8 x capacity, a stall of 5 s after 5 s"]["by_second"], file=sys.stderr)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as told:
            lines = told.read().decode().splitlines()
        table["wasted batches"] = next(line for line in lines if line.startswith("thalweg_wasted_batches_total"))
    finally:
        server.stop()
    return table


def beside_draws(options: argparse.Namespace) -> dict[str, Any]:
    """Closed loops on our server, with and without a client of `/v1/sample`: medians."""
    body, found = body_of(options.model, options.body), {"alone": [], "beside": []}
    server, draws = Server("ours", options.model, options.port, options=own(options)), 0
    asked = json.dumps({"n": 8, "frames": 12}).encode()
    try:
        server.wait(body)
        closed(server, body, options.connections, 1)
        for _ in range(options.rounds):
            found["alone"].append(closed(server, body, options.connections, options.seconds))
            stop = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                drawn = pool.submit(ask_until, stop, f"http://127.0.0.1:{server.port}/v1/sample", asked)
                try:
                    found["beside"].append(closed(server, body, options.connections, options.seconds))
                finally:
                    stop.set()
                draws += drawn.result()
    finally:
        server.stop()
    of = {
        key: Closed(*(statistics.median(column) for column in zip(*rounds, strict=True)))
        for key, rounds in found.items()
    }
    return {key: median._asdict() for key, median in of.items()} | {"draws": draws}


def ask_until(stop: threading.Event, url: str, body: bytes) -> int:
    """How many requests were answered; HTTPError for one that was not."""
    count = 0
    while not stop.is_set():
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
            answer.read()
        count += 1
    return count


def main() -> None:
    """Run one of them and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["closed", "open", "draws"])
    parser.add_argument("model", nargs="?", default="tiny", help="a folder that thalweg.load reads, or tiny")
    parser.add_argument("--body", choices=["json", "npy"], default="json")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--deadline", type=float, default=2.0, help="of each request of the open loops")
    parser.add_argument("--factors", type=float, nargs="*", default=[0.5, 2, 4])
    parser.add_argument("--litserve", help="the python of an environment with litserve 0.2.19, for `closed` with json")
    parser.add_argument("--processes", type=int, help="that compute scores in our server; left out: its own choice")
    parser.add_argument("--port", type=int, default=8770)
    options = parser.parse_args()
    run = {"closed": compare, "open": overload, "draws": beside_draws}[options.what]
    print(json.dumps(run(options), indent=1))


if __name__ == "__main__":
    main()
