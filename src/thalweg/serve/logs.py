"""Log lines: JSON for machines, plain words on a terminal. No token, no body, no query string.

One line a request says when, which route, which code, how long, how many rows of which model, and the request's id.
"""

import asyncio
import json
import logging
import random
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TextIO

ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # of a request, as a client or a proxy may give it
PLAIN = "%(asctime)s %(levelname)s %(message)s"
OWN = ("thalweg.serve", "thalweg", "uvicorn", "asyncio", "py.warnings")  # loggers that are heard

Notes = dict[str, Any]
_ids = random.Random(secrets.randbits(128))
_notes: ContextVar[Notes | None] = ContextVar("notes", default=None)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record.created), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class RequestLog:
    """Writes a line a request.

    Args:
        stream: Where to. None: standard error.
        readable: Plain words. None: if the stream is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, *, readable: bool | None = None):
        self.stream = sys.stderr if stream is None else stream
        self._lines: list[str] = []
        self.readable = self.stream.isatty() if readable is None else readable

    def write(
        self, method: str, route: str, code: int, seconds: float, request_id: str, notes: Mapping[str, Any]
    ) -> None:
        """One request that was answered. Lines of one turn of an event loop are written together, at its end."""
        model, rows = notes.get("model"), notes.get("rows")
        milliseconds = round(1e3 * seconds, 3)
        if self.readable:
            what = "" if model is None else f"  {rows} {'row' if rows == 1 else 'rows'} of {model}"
            line = f"{time.strftime('%H:%M:%S')}  {method} {route}  {code}  {milliseconds:g} ms{what}"
        else:
            what = f'"method": {_quoted(method)}, "route": {_quoted(route)}, "code": {code}, "ms": {milliseconds}'
            told = 'null, "rows": null' if model is None else f'{_quoted(model)}, "rows": {rows}'
            line = f'{{"time": "{_time(time.time())}", {what}, "model": {told}, "id": "{request_id}"}}'
        self._lines.append(line)
        if len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self._flush)
            except RuntimeError:  # outside a loop
                self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        self.stream.write("\n".join([*lines, ""]))


def set_up(stream: TextIO | None = None, *, readable: bool | None = None) -> RequestLog:
    """Send the log of the service and the server, warnings, and the log of requests to a stream."""
    requests = RequestLog(stream, readable=readable)
    handler = logging.StreamHandler(requests.stream)
    handler.setFormatter(logging.Formatter(PLAIN, "%H:%M:%S") if requests.readable else JsonFormatter())
    for name in OWN:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == OWN[0] else logging.WARNING)
    logging.captureWarnings(True)
    logging.lastResort = handler  # of loggers without a handler  # pyright: ignore[reportAttributeAccessIssue]
    return requests


@contextmanager
def noting() -> Iterator[Notes]:
    """A block in which `note` writes what the line of this request says of it."""
    notes: Notes = {}
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(model: str, rows: int) -> None:
    """The request at hand asks so many rows of a model."""
    notes = _notes.get()
    if notes is not None:
        notes["model"], notes["rows"] = model, rows


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The id that a request came with, if it is plain, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and ID.fullmatch(value):
            return value.decode()
    return new_request_id()


def new_request_id() -> str:
    """An id of a request: no secret, so it is drawn without asking the system."""
    return f"{_ids.getrandbits(64):016x}"


@lru_cache(256)
def _quoted(text: str) -> str:
    return json.dumps(text)


@lru_cache(2)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _time(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int(1e3 * (seconds - whole)):03d}Z"
