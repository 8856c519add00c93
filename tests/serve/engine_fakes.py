"""Models whose answers are known, and whose calls wait until a test lets them go."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager

import numpy as np

import thalweg.serve.engine.scoring as module
from thalweg.bundle.servable import TensorSpec
from thalweg.core.errors import UserError
from thalweg.serve.engine.cost import Cost
from thalweg.serve.engine.engine import Engine
from thalweg.serve.metrics import Metrics

SECONDS = 600.0  # no test waits so long


class Sums:
    """E(x) = sum of x (B, D), p = 1 / (1 + E). Calls wait while `gate` is closed, and are kept in `calls`."""

    title, content, flag_rate = "sums", "rows", 0.01
    inputs = (TensorSpec("x", "FP64", (-1, 2)),)
    outputs = (TensorSpec("energy", "FP64", (-1,)), TensorSpec("flag", "BOOL", (-1,)))

    def __init__(self, open: bool = True):
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.calls: list[np.ndarray] = []
        self.alphas: list = []
        self.threads: list[int] = []
        self.fault: Callable[[np.ndarray], None] = lambda x: None
        if open:
            self.gate.set()

    def score(self, rows, *, alpha=None):
        x = rows["x"]
        self.calls.append(x)
        self.alphas.append(alpha)
        self.threads.append(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(60)
        self.fault(x)
        if np.isnan(x).any():
            raise UserError("must be numbers", argument="x")
        energy = x.reshape(len(x), -1).sum(1)
        return {"energy": energy, "flag": energy <= (0.01 if alpha is None else alpha)}

    def seen(self) -> set[float]:
        """First numbers of all rows that were scored."""
        return {float(value) for x in self.calls for value in x.reshape(len(x), -1)[:, 0]}

    async def until_entered(self):
        """Wait until a call has begun."""
        await asyncio.to_thread(self.entered.acquire)


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cost(*, one: float = 0.01, most: int = 32, of_most: float = 0.02) -> Cost:
    """Of a model that is worth batching; `most` rows a call."""
    return Cost([1, most], [one, of_most]) if most > 1 else Cost([1], [one])


class InThreads(module.InThread):
    """As processes would: each worker computes whatever the others do."""

    def others(self, count):
        return [InThreads(self.models) for _ in range(count)]


@asynccontextmanager
async def running(monkeypatch, models, *, queue=1024, deadline=SECONDS, costs=None, **settings):
    """A started engine over models whose costs are given, not measured, so that tests do not hang on the machine."""
    monkeypatch.setattr(module, "measured", lambda servable, threads: (costs or {}).get(id(servable), cost()))
    monkeypatch.setattr(module, "warm", lambda servable, rows: None)
    engine = Engine(models, queue=queue, deadline=deadline, metrics=Metrics(), **settings)
    if "processes" in settings:
        engine.scoring = InThreads(models)
    await engine.start()
    try:
        yield engine
    finally:
        for model in models.values():
            model.gate.set()
        await engine.drain(10)


@asynccontextmanager
async def busy(monkeypatch, *, value=0, deadline=None, **more):
    """(engine, model, the first request): a call has begun, and lasts until the test opens the model's gate."""
    model = Sums(open=False)
    async with running(monkeypatch, {"m": model}, **more) as engine:
        first = asyncio.create_task(engine.score("m", row(value), deadline=deadline))
        await model.until_entered()
        yield engine, model, first


def row(*values: float) -> dict[str, np.ndarray]:
    """Rows [value, 0]."""
    return {"x": np.array([[value, 0.0] for value in values])}


def counted(engine: Engine, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = engine.metrics.text().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


async def settled(condition: Callable[[], bool]) -> None:
    """Let the event loop run until something holds."""
    for _ in range(20000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to hold")


def counting(stop: int, log: list | None = None) -> Iterator[int]:
    """0 … stop - 1."""
    try:
        yield from range(stop)
    finally:
        if log is not None:
            log.append("closed")
