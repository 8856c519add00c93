"""How routes ask the engine and write what it found."""

import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from thalweg.core.errors import UserError, row_from_zero
from thalweg.serve.engine.engine import Engine
from thalweg.serve.engine.rejected import Rejected
from thalweg.serve.errors import HttpError, internal, malformed, of_user_error
from thalweg.serve.inputs.conform import RowName
from thalweg.serve.models import Models, ServedModel
from thalweg.serve.safety.observed import GONE
from thalweg.serve.settings import ServeSettings

JSON = "application/json"
NDJSON = "application/x-ndjson"
TIMEOUT_HEADER = "request-timeout-ms"
WHOLE = "thalweg.answer_whole"  # an extension of ASGI: answers by 200 at once, headers and body in one write
FEW = 8  # numbers, which Python looks at sooner than numpy
log = logging.getLogger("thalweg.serve")


class RouteContext:
    """What every route needs."""

    def __init__(self, models: Models, engine: Engine, settings: ServeSettings):
        self.models, self.engine, self.settings = models, engine, settings

    def deadline(self, request: Request, asked: float | None = None) -> float:
        """Seconds that a request has: what it asks for in its header or by `asked`, at most the service's own."""
        return self.limit(request.headers.get(TIMEOUT_HEADER), asked)

    def limit(self, header: str | None, asked: float | None = None) -> float:
        """The same by the header's value, None where there is none."""
        if header is not None:
            if not (header.isascii() and header.isdigit() and 1 <= len(header) <= 9):
                raise malformed("must be a whole number of milliseconds", "Request-Timeout-Ms")
            asked = int(header) / 1000
        return self.settings.deadline if asked is None else min(asked, self.settings.deadline)


def of_rejected(error: Rejected) -> HttpError:
    """The answer for work that was not done."""
    seconds = {"Retry-After": str(max(1, round(error.retry_after)))}
    if error.reason == "full":
        return HttpError(429, "full", "the queue is full; try again later", headers=seconds)
    if error.reason == "deadline":
        return HttpError(504, "deadline", "the deadline has passed")
    if error.reason == "gone":
        return HttpError(GONE, "gone", "the client has gone")
    return HttpError(503, error.reason, f"the service is {error.reason}; try again later", headers=seconds)


@contextmanager
def asking(model: ServedModel, row_name: RowName = row_from_zero) -> Iterator[None]:
    """What a servable or the engine refuses, as the answer that says so; `row_name` is what it calls a row.

    The field of a row that is refused as a whole is that row.
    """
    try:
        yield
    except UserError as error:
        if error.row is None:
            raise of_user_error(error, model.fields) from error
        row = row_name(error.row)
        refused = of_user_error(error.in_row(row), model.fields)
        refused.field = row if refused.field is None else refused.field
        raise refused from error
    except Rejected as error:
        raise of_rejected(error) from error


def require_finite(found: Mapping[str, np.ndarray], row_name: RowName = row_from_zero) -> None:
    """422 where a number is not finite, so that none goes out."""
    for name, value in found.items():
        if value.dtype.kind == "f" and not _all_finite(value):
            row = int(np.flatnonzero(~np.isfinite(value).reshape(len(value), -1).all(1))[0])
            text = f"must be a row whose {name} the model can compute as a finite number"
            raise HttpError(422, "non_finite", text, field=row_name(row))


def _all_finite(value: np.ndarray) -> bool:
    if value.size <= FEW:
        return all(map(math.isfinite, value.ravel().tolist()))
    return bool(np.isfinite(value).all())


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(to_json(value), status, headers, JSON)


async def lines(model: ServedModel, items: AsyncIterator[Any]) -> StreamingResponse:
    """Items as lines of JSON as they come. What fails before the first has the status of its error."""
    with asking(model):
        first = await anext(items, None)

    async def text() -> AsyncIterator[bytes]:
        try:
            with asking(model):
                if first is not None:
                    yield to_json(first) + b"\n"
                async for item in items:
                    yield to_json(item) + b"\n"
        except HttpError as error:
            yield to_json({"error": error.body()}) + b"\n"
        except Exception:
            log.exception("a stream failed")
            yield to_json({"error": internal().body()}) + b"\n"
        finally:
            if isinstance(items, AsyncGenerator):  # so that the engine forgets a stream whose client left
                await items.aclose()

    return StreamingResponse(text(), media_type=NDJSON)
