"""Why a request was not computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from thalweg.core.errors import ThalwegError

Reason = Literal["full", "deadline", "gone", "draining", "loading"]
REASONS: tuple[Reason, ...] = ("full", "deadline", "gone", "draining", "loading")


class Rejected(Exception):
    """A request that is not computed; the engine has counted it.

    Args:
        reason: `full`: too much waits; `deadline`: its time is over, or would be; `gone`: nobody waits for it;
            `draining`, `loading`: the service ends, or has not begun.
        retry_after: Seconds after which another try makes sense.
    """

    def __init__(self, reason: Reason, retry_after: float = 1.0):
        super().__init__(reason)
        self.reason: Reason = reason
        self.retry_after = retry_after


class WorkerLost(ThalwegError):
    """What computed this request ended, a thread twice; the request itself may be the cause."""


@contextmanager
def exit_as_lost() -> Iterator[None]:
    """SystemExit of a model as `WorkerLost`: on the event loop it would be an answer of the server's, without JSON."""
    try:
        yield
    except SystemExit as error:
        raise WorkerLost("the computation has asked to end the process") from error
