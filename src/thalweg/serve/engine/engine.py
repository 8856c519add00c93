"""Stand-in until the branch `engine` is merged: every request alone, in a thread."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from starlette.concurrency import run_in_threadpool

from thalweg.bundle.servable import Servable
from thalweg.serve.metrics import Metrics

T = TypeVar("T")
Gone = Callable[[], Awaitable[bool]]


class EngineState(NamedTuple):
    """How it stands."""

    ready: bool
    alive: bool
    reason: str


class Rejected(Exception):
    """Work that was not done."""

    def __init__(self, reason: Literal["full", "deadline", "gone", "draining", "loading"], retry_after: float = 1.0):
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


class Engine:
    """One piece of work at a time."""

    def __init__(
        self,
        models: Mapping[str, Servable],
        *,
        queue: int,
        deadline: float,
        metrics: Metrics,
        threads: int | None = None,
    ):
        self.models, self.deadline, self._ready = models, deadline, False
        self._lock = asyncio.Lock()

    async def start(self) -> None:
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
        return await self.call(model, lambda: self.models[model].score(rows, alpha=alpha), deadline=deadline, gone=gone)

    async def call(
        self, model: str, work: Callable[[], T], *, deadline: float | None = None, gone: Gone | None = None
    ) -> T:
        if not self._ready:
            raise Rejected("loading")
        try:
            async with asyncio.timeout(self.deadline if deadline is None else deadline), self._lock:
                return await run_in_threadpool(work)
        except TimeoutError as error:
            raise Rejected("deadline") from error

    async def stream(
        self,
        model: str,
        make: Callable[[], Iterator[T]],
        *,
        deadline: float | None = None,
        gone: Gone | None = None,
    ) -> AsyncIterator[T]:
        end: Any = object()
        items = await self.call(model, make)
        while (item := await self.call(model, lambda: next(items, end))) is not end:
            yield item

    def state(self) -> EngineState:
        return EngineState(self._ready, True, "" if self._ready else "loading")

    async def drain(self, timeout: float) -> bool:
        return True
