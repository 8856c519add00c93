"""The engine: requests of many clients computed by a few workers, in full calls, in bounded time.

A call that is cheap by measurement is made on the event loop while nothing else is computed. All other work waits in
line for the workers (`waiting.py`). A process computes one piece at a time, so no model need be safe for threads.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch

from thalweg.bundle.servable import Servable
from thalweg.serve.engine.admission import Admission
from thalweg.serve.engine.cost import Cost
from thalweg.serve.engine.items import END, ItemStream
from thalweg.serve.engine.job import Gone, Kind, Piece, signature_of
from thalweg.serve.engine.jobs import Jobs
from thalweg.serve.engine.rejected import exit_as_lost
from thalweg.serve.engine.scoring import InThread, Scoring
from thalweg.serve.engine.start import at_once, number_of_processes
from thalweg.serve.engine.state import EngineState
from thalweg.serve.engine.waiting import Waiting
from thalweg.serve.engine.worker import Outcome
from thalweg.serve.engine.workers import Workers
from thalweg.serve.logs import note
from thalweg.serve.metrics import Metrics

T = TypeVar("T")
TICK = 0.05  # seconds between looks for late requests, clients that left and a worker that ended
IDLE_TICK = 1.0  # the same while no request is there
STUCK = 30.0  # seconds of one piece of work after which a worker counts as stuck
FOREVER = float("inf")

log = logging.getLogger("thalweg.serve")


class Engine:
    """Computes for many clients what a few models can do. All methods are of the event loop's thread.

    Args:
        models: By name.
        queue: Rows that may wait, of which a request counts for half at most.
        deadline: Seconds after which a request is answered by `Rejected("deadline")`; one may ask for less.
        metrics: Where it is counted.
        threads: torch's threads.
        processes: That compute scores at the same time, at most. None: by measurement, model by model.
        clock: Seconds, for tests.
    """

    def __init__(
        self,
        models: Mapping[str, Servable],
        *,
        queue: int,
        deadline: float,
        metrics: Metrics,
        threads: int = 1,
        processes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.models, self.queue, self.deadline, self.metrics = dict(models), queue, deadline, metrics
        self.threads, self.processes, self.clock = threads, processes, clock
        self.scoring: Scoring = InThread(self.models)  # another one may be set before the start
        self.batch: dict[str, int] = {}  # rows of a call, by model
        self._at_once: dict[str, int] = {}  # calls, by model
        self._waiting = Waiting(self.batch, self._at_once, clock)
        self._admission = Admission(self._waiting, queue, clock)
        self._workers = Workers(self._waiting, self.threads, self._report, self._admission.expected_seconds)
        self._jobs = Jobs(self._waiting, self._workers.wake, metrics, clock)
        self._streams = 0  # begun and not at their end
        self._ready = self._draining = self._stopped = False
        self._watch: asyncio.Task[None] | None = None
        self.rows = lambda: self._waiting.rows  # that wait
        metrics.depth(self.rows)

    async def start(self) -> None:
        """Measure the models, one after another, where they are computed; requests are taken afterwards."""
        self._loop = asyncio.get_running_loop()
        torch.set_num_threads(self.threads)  # of calls on the event loop: each thread of the process has its own
        self._workers.add(self.scoring)
        self._watch = asyncio.create_task(self._watching())
        for name, servable in self.models.items():
            self.metrics.watch(name, servable)
            self._learn(name, await self._measured(self.scoring, name))
        count = number_of_processes(self.models.values(), self._at_once.values(), self.threads, self.processes)
        others = self.scoring.others(count - 1)
        for name, count in self._at_once.items():
            self._at_once[name] = min(count, 1 + len(others))
        await self._workers.add_warm(others)
        self._waiting.count = len(self._workers.every)
        self._ready = True

    async def score(
        self,
        model: str,
        rows: Mapping[str, np.ndarray],
        *,
        alpha: float | None = None,
        deadline: float | None = None,
        gone: Gone | None = None,
    ) -> dict[str, np.ndarray]:
        """`Servable.score` of the rows, maybe in one call with those of others.

        Raises:
            Rejected: It was not computed.
            UserError: By the model, of these rows.
        """
        signature, size = signature_of(rows)
        note(model, size)
        self.admit(model, size, deadline)
        if self._admission.here(model, size):
            return self._score_here(model, rows, alpha, size)
        job = self._jobs.make(model, "score", size, self._limit(deadline), gone)
        job.inputs, job.alpha, job.signature = rows, alpha, signature
        return await self._jobs.answer(job)

    async def call(
        self, model: str, work: Callable[[], T], *, deadline: float | None = None, gone: Gone | None = None
    ) -> T:
        """What `work` returns: one piece of other work of a model."""
        note(model, 1)
        self.admit(model, 1, deadline, kind="call")
        job = self._jobs.make(model, "call", 1, self._limit(deadline), gone)
        job.work = work
        return await self._jobs.answer(job)

    def stream(
        self,
        model: str,
        make: Callable[[], Iterator[T]],
        *,
        deadline: float | None = None,
        gone: Gone | None = None,
    ) -> AsyncGenerator[T]:
        """The items of an iterator, each computed when it is asked for. The deadline is that of an item.

        Raises:
            Rejected: At once where the stream may not begin; later, by the iteration, for an item that came too late.
        """
        note(model, 1)
        self.admit(model, 1, deadline, kind="stream")
        return self._items(model, ItemStream(make), deadline, gone)

    async def last(
        self,
        model: str,
        make: Callable[[], Iterator[T]],
        *,
        deadline: float | None = None,
        gone: Gone | None = None,
    ) -> T:
        """The last item of an iterator; other work goes on between items, and the deadline is that of all together."""
        until = self.clock() + self._limit(deadline)
        items, found = self.stream(model, make, deadline=deadline, gone=gone), None
        try:
            async for item in items:
                found = item
                if self.clock() > until:
                    raise self._jobs.rejected("deadline")
        finally:
            await items.aclose()
        assert found is not None
        return found

    def alone(self, told: Callable[[], bool]) -> None:
        """Who says whether there is one client alone: its calls of some milliseconds are made on the event loop."""
        self._admission.alone = told

    def admit(self, model: str, rows: int = 1, deadline: float | None = None, *, kind: Kind = "score") -> None:
        """Rejected where a request of so many rows is not taken now; cheap enough to ask before its body is read."""
        if not self.taking:
            raise self._jobs.rejected("draining" if self._draining else "loading", 1.0)
        refused = self._admission.refusal(model, kind, rows, self._limit(deadline))
        if refused is not None:
            raise self._jobs.rejected(*refused)

    def retry_after_if_full(self, model: str, rows: int = 1) -> float | None:
        """Seconds after which to come back where rows would be refused now, as too much waits; nothing is counted."""
        refused = self._admission.refusal(model, "score", rows, self.deadline)
        return None if refused is None or refused[0] != "full" else refused[1]

    @property
    def taking(self) -> bool:
        """Whether requests are taken at all: the models are measured, and the end has not begun."""
        return self._ready and not self._draining

    @property
    def busy(self) -> bool:
        """Whether something is computed at this moment."""
        return bool(self._waiting.taken)

    def state(self) -> EngineState:
        """How it stands."""
        if not self._stopped and not self._workers.alive():
            return EngineState(False, False, "a worker has ended")
        stuck = self._waiting.running_longer_than(STUCK)
        if len(stuck) >= max(1, len(self._workers.every)):
            return EngineState(False, False, f"a worker is stuck for {max(stuck.values()):.0f} s")
        if not self.taking:
            return EngineState(False, True, "draining" if self._draining else "loading")
        full = self._waiting.rows >= self.queue
        return EngineState(not full, True, "full" if full else "")

    async def drain(self, timeout: float) -> bool:
        """Take nothing more, answer what was accepted, stop the worker. Whether all of it was answered in time."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._jobs.every or self._streams:
                    await asyncio.sleep(TICK / 5)
        answered = not (self._jobs.every or self._streams)
        self._jobs.reject_all()
        self._stopped = True
        if self._watch is not None:
            self._watch.cancel()
        self._workers.stop()
        return answered

    async def look(self) -> None:
        """Replace what ended or is stuck, answer requests whose time is over, drop those whose client has gone.

        Nobody waits for what takes longer than the deadline, the measurement at start aside.
        """
        for number in self._workers.ended():
            self._replace(number)
        if self._ready:
            for number, seconds in self._waiting.running_longer_than(max(STUCK, self.deadline)).items():
                self._workers.interrupt(number, seconds)
        self._workers.wake()  # for what waits for a call that hangs
        await self._jobs.look()

    def _limit(self, deadline: float | None) -> float:
        return self.deadline if deadline is None else min(deadline, self.deadline)

    def _score_here(
        self, model: str, rows: Mapping[str, np.ndarray], alpha: float | None, size: int
    ) -> dict[str, np.ndarray]:
        """A cheap call, on the event loop."""
        began = time.perf_counter()
        with exit_as_lost():
            found = dict(self.models[model].score(rows, alpha=alpha))
        self._computed(model, size, time.perf_counter() - began, found)
        return found

    async def _items(
        self, model: str, items: ItemStream, deadline: float | None, gone: Gone | None
    ) -> AsyncGenerator[Any]:
        self._streams += 1
        try:
            while True:
                job = self._jobs.make(model, "stream", 1, self._limit(deadline), gone)
                job.work = items
                item = await self._jobs.answer(job)
                if item is END:
                    return
                yield item
        finally:
            self._streams -= 1
            if items.begun:  # it may hold what only its own thread may release
                job = self._jobs.make(model, "stream", 1, FOREVER, None)
                job.work = items.close
                self._jobs.enqueue(job)

    async def _measured(self, scoring: Scoring, model: str) -> Cost:
        job = self._jobs.make(model, "call", 1, FOREVER, None)
        job.work = lambda: scoring.measured(model, self.threads)
        return await self._jobs.answer(job)

    def _report(self, outcome: Outcome) -> None:
        """What a worker reports, in its thread."""
        piece = outcome.piece
        if piece is not None and outcome.found is not None:
            self.metrics.scored(piece.model, outcome.found)
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: Outcome) -> None:
        """Costs and figures of a piece, whether it was computed for nobody, and its answers."""
        if outcome.piece is not None:
            self._count(outcome.piece, outcome)
        self._jobs.settle(outcome)

    def _count(self, piece: Piece, outcome: Outcome) -> None:
        began = outcome.began
        if all(job.deadline <= began or (job.left is not None and job.left <= began) for job, _, _ in piece.jobs):
            self.metrics.wasted(piece.model)
        if outcome.error is None:
            self._admission.took(piece, outcome.seconds)
            if piece.work is None:
                self.metrics.computed(piece.model, piece.rows, outcome.seconds)

    def _computed(self, model: str, rows: int, seconds: float, found: Mapping[str, np.ndarray]) -> None:
        self._admission.costs[model].took(rows, seconds)
        self.metrics.computed(model, rows, seconds)
        self.metrics.scored(model, found)

    def _replace(self, number: int) -> None:
        """A new worker for one that has ended."""
        pieces = self._waiting.release(number)
        self._workers.replace(number)
        for piece in reversed(pieces):
            self._jobs.retry(piece, computed=piece is pieces[0])
        self._workers.every[number].wake()

    async def _watching(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TICK):
                    await self._jobs.some.wait()
            await asyncio.sleep(TICK)
            await self.look()

    def _learn(self, name: str, cost: Cost) -> None:
        self._admission.costs[name], self.batch[name] = cost, cost.batch()
        self._at_once[name] = at_once(cost, self.threads, self.processes)
        dear = f"in calls of up to {self.batch[name]} rows, at most {self._at_once[name]} at once"
        how = "on the event loop" if self._admission.cheap(name, 1) else dear
        log.info("model %s: %.3f ms a row alone; %s", name, 1e3 * cost(1), how)
