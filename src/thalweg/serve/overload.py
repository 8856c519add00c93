"""What is refused while the service cannot keep up, at the price of reading a request's head.

A request that is admitted waits for the event loop, then for the engine. Neither wait may grow, and an answer by the
framework that refuses costs the loop nearly as much as one that scores. So the protocol asks here as soon as a head is
read. A request is refused where as many wait for the loop as it gets through in some hundredths of a second, or where
the engine would refuse a row of the only model now. A burst is taken; after a turn that refused, fewer may wait, so
that refusals come soon.
"""

import time
from collections.abc import Iterable
from functools import lru_cache

from pydantic_core import to_json

from thalweg.serve.answers import of_rejected
from thalweg.serve.engine.engine import Engine
from thalweg.serve.engine.rejected import Rejected
from thalweg.serve.logs import new_request_id
from thalweg.serve.metrics import Metrics
from thalweg.serve.safety.headers import CACHE, HEADERS
from thalweg.serve.safety.observed import ID, OTHER

BEHIND = 64  # requests that may wait for the loop, which takes some .2 ms to read and answer one
AFTER = 16  # the same in the turn after one that refused some
MANY = 400  # refusals of a turn, from which they would leave answers no time, so that more may wait:
SHARE = 7  # that many cost what one answer does
SCORES = {b"/v1/score": "/v1/score"}  # paths that are asked of the engine, and their routes
STATUS = b"HTTP/1.1 429 Too Many Requests\r\n"
AGAIN = 0.002  # seconds for which the engine's refusal stands: it computes no call in less under such a load

Pairs = Iterable[tuple[bytes, bytes]]


class Overload:
    """One of a process.

    Args:
        engine: Is asked for scores.
        metrics: Where refusals are counted.
    """

    def __init__(self, engine: Engine, metrics: Metrics):
        self.engine, self.metrics = engine, metrics
        self.only = next(iter(engine.models)) if len(engine.models) == 1 else None
        self.behind = 0  # requests that were admitted and that the loop has not started
        self._refused = self._refused_before = 0  # in this turn of the loop, and in the one before
        self._full: tuple[float, float] = 0.0, 0.0  # until when the engine counts as full, and when to come again

    def request_admitted(self) -> None:
        """One more request waits for the loop; the first one of a turn, if none did."""
        if not self.behind:
            self._refused_before, self._refused = self._refused, 0
        self.behind += 1

    def request_started(self) -> None:
        """The loop has started one."""
        self.behind -= 1

    def may_refuse(self) -> bool:
        """Whether something was refused just now, or would be: worth a look at a request before it is parsed."""
        return self._behind() or time.perf_counter() < self._full[0] + AGAIN

    def refusal(self, path: bytes, common: Pairs) -> bytes | None:
        """The answer for a POST that should not be taken now, counted, as bytes of HTTP/1.1.

        Args:
            path: As it is asked for.
            common: Headers of every answer of the server.
        """
        if not self.engine.taking:
            return None
        wait = 1.0 if self._behind() else self._wait(path)
        if wait is None:
            return None
        self._refused += 1
        self.metrics.rejected("full")
        self.metrics.request(SCORES.get(path, OTHER), 429, 0.0)
        own, body = refusal_of(max(1, round(wait)), path.startswith(b"/v2"))
        return b"".join((STATUS, *lines_of(common), own, new_request_id().encode(), b"\r\n\r\n", body))

    def _behind(self) -> bool:
        """Whether as many requests as may be wait for the loop."""
        before = self._refused_before
        return self.behind >= (BEHIND if not before else AFTER if before < MANY else max(AFTER, before // SHARE))

    def _wait(self, path: bytes) -> float | None:
        """Seconds after which to ask the engine again, where it would refuse a row now."""
        if self.only is None or path not in SCORES:
            return None
        now = time.perf_counter()
        if now >= self._full[0]:
            wait = self.engine.retry_after_if_full(self.only, 1 + self.behind)
            if wait is None:
                return None
            self._full = now + AGAIN, wait
        return self._full[1]


@lru_cache(256)
def refusal_of(retry_after: int, protocol: bool) -> tuple[bytes, bytes]:
    """(the headers of a 429 up to the value of its id, its body); `protocol`: in the form of the version 2."""
    error = of_rejected(Rejected("full", retry_after))
    body = to_json(error.body_for("/v2" if protocol else "/v1"))
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    own += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    return b"".join(lines_of([*own, *HEADERS, CACHE])) + ID + b": ", body


def lines_of(pairs: Pairs) -> list[bytes]:
    """Headers as lines of HTTP/1.1."""
    return [name + b": " + value + b"\r\n" for name, value in pairs]
