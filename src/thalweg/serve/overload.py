"""What is refused while the service cannot keep up, at the price of reading a request's head.

Requests that wait for the event loop wait before the engine knows of them, and an answer that refuses costs the loop
nearly as much as one that scores. So the protocol asks here as soon as a head is read. A request is refused where the
loop came to recent ones late, or where the engine would refuse a row of the only model now.
"""

import secrets
import time
from collections.abc import Iterable, Mapping

from pydantic_core import to_json

from thalweg.serve.answers import of_rejected
from thalweg.serve.engine.engine import Engine
from thalweg.serve.engine.rejected import Rejected
from thalweg.serve.errors import HttpError
from thalweg.serve.metrics import Metrics
from thalweg.serve.safety.headers import CACHE, HEADERS
from thalweg.serve.safety.observed import ID, OTHER

BEGUN = "thalweg.begun"  # in a scope's state: when the server read the request's first bytes
LATE = 0.25  # seconds from a request's first bytes to the loop's turn for it, from which others are refused
RECENT = 0.05  # seconds that such a delay tells of: the next request that is let in measures it anew
SCORES = {b"/v1/score": "/v1/score"}  # paths that are asked of the engine, and their routes


class Overload:
    """One of a process.

    Args:
        engine: Is asked for scores.
        metrics: Where refusals are counted.
    """

    def __init__(self, engine: Engine, metrics: Metrics):
        self.engine, self.metrics = engine, metrics
        self.only = next(iter(engine.models)) if len(engine.models) == 1 else None
        self._late, self._seen = 0.0, 0.0

    def started(self, begun: float) -> None:
        """The loop has come to a request whose first bytes were read then, by `time.perf_counter`."""
        self._seen = time.perf_counter()
        self._late = self._seen - begun

    def refusal(self, path: bytes) -> HttpError | None:
        """The answer for a POST that should not be taken now."""
        if not self.engine.taking:
            return None
        if self._late > LATE and time.perf_counter() - self._seen < RECENT:
            return refused(1.0)
        if self.only is None or path not in SCORES:
            return None
        wait = self.engine.full(self.only)
        return None if wait is None else refused(wait)

    def response(self, error: HttpError, path: bytes, common: Iterable[tuple[bytes, bytes]]) -> bytes:
        """A refusal as the bytes of HTTP/1.1, counted. `common`: headers of every answer of the server."""
        self.metrics.rejected("full")
        self.metrics.request(SCORES.get(path, OTHER), error.status, 0.0)
        body = to_json(error.body_for(path.decode("latin-1")))
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        pairs = [*common, *own, *_raw(error.headers), *HEADERS, CACHE, (ID, secrets.token_hex(8).encode())]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in pairs)
        return b"HTTP/1.1 429 Too Many Requests\r\n" + head + b"\r\n" + body


def refused(retry_after: float) -> HttpError:
    """429."""
    return of_rejected(Rejected("full", retry_after))


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
