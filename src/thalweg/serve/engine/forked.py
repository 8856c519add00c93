"""Scores in a process of their own, so that the event loop shares the interpreter with no model.

Where a thread computes, the event loop and torch take the interpreter from each other at each operation and each call
of the system, which costs a third of the answers. A process has one of its own. It is forked before the service starts,
so it shares the models' memory. Where a fault of native code or a lack of memory ends it, the service goes on, and
another takes its place.

A process with threads cannot be forked safely, so a third one is forked at the same time, which has none and does
nothing but fork the process that computes.
"""

import logging
import os
import pickle
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np
import torch

from thalweg.bundle.servable import Servable
from thalweg.core.errors import ThalwegError
from thalweg.serve.engine.rejected import WorkerLost
from thalweg.serve.engine.scoring import InThread, let_others_first
from thalweg.serve.engine.start import Measured

TRIES = 2  # processes that a call may lose

log = logging.getLogger("thalweg.serve")


def can_fork() -> bool:
    """Whether a process can compute: a GPU that this one has used cannot be used by one that it forks."""
    return sys.platform == "linux" and not torch.cuda.is_initialized()


class InProcess:
    """Scores by a process that this one has had forked.

    Args:
        models: By name.
        listener: A socket that other processes must not hold.
    """

    def __init__(self, models: Mapping[str, Servable], listener: socket.socket | None = None):
        self._control, there = socket.socketpair()
        self._calls: Connection | None = None
        self._closed = False
        self._here = InThread(models)
        self._pid = _fork()
        if not self._pid:
            for unused in (self._control, *([] if listener is None else [listener])):
                unused.close()
            _fork_when_asked(there, self._here)
        there.close()

    def begin(self) -> None:
        """The process is asked for by the first call."""

    def measured(self, model: str, threads: int | None) -> Measured:
        return self._ask("measured", model, threads)

    def score(self, model: str, inputs: Mapping[str, np.ndarray], alpha: Any, threads: int) -> Mapping[str, np.ndarray]:
        return self._ask("score", model, inputs, alpha, threads)

    def close(self) -> None:
        self._closed = True
        self._control.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _ask(self, what: str, *values: Any) -> Any:
        """What a method of `InThread` returns or raises there."""
        for _ in range(TRIES):
            if self._closed:
                break
            try:
                calls = self._calls = self._calls or self._new_process()
            except OSError:
                log.critical("no process can be forked any more: a thread computes")
                return getattr(self._here, what)(*values)
            try:
                calls.send((what, values))
                found, error = calls.recv()
            except (EOFError, OSError):
                log.error("the process that computes has ended; another one takes its place")
                calls.close()
                self._calls = None
                continue
            if error is not None:
                raise error
            return found
        raise WorkerLost("the process that computed this request has ended")

    def _new_process(self) -> Connection:
        """A connection to one. OSError where the process that forks has ended."""
        here, there = socket.socketpair()
        try:
            socket.send_fds(self._control, [b"."], [there.fileno()])
        except OSError:
            here.close()
            raise
        finally:
            there.close()
        return Connection(here.detach())


def _fork() -> int:
    with warnings.catch_warnings():  # of Python 3.12 on: threads of libraries are there, and none of them is used here
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _fork_when_asked(control: socket.socket, scoring: InThread) -> NoReturn:
    """Fork a process for each connection that comes, in place of the one before; end, with it, at the service's end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the service drains, and then ends by itself
        signal.signal(number, signal.SIG_IGN)
    last = 0
    while True:
        found, files, *_ = socket.recv_fds(control, 1, 1)
        if last:
            os.kill(last, signal.SIGKILL)
            os.waitpid(last, 0)
        if not found:
            os._exit(0)
        last = _fork()
        if not last:
            control.close()
            _compute(Connection(files[0]), scoring)
        os.close(files[0])


def _compute(calls: Connection, scoring: InThread) -> NoReturn:
    """Answer calls, one after another, until the connection ends or a model ends the process."""
    with suppress(BaseException):
        let_others_first()
        while True:
            what, values = calls.recv()
            try:
                answer = getattr(scoring, what)(*values), None
            except Exception as error:
                answer = None, _sendable(error)
            calls.send(answer)
    os._exit(0)


def _sendable(error: Exception) -> Exception:
    """The error as another process can read it, with its traceback as a note."""
    told = "".join(traceback.format_exception(error))
    try:
        other = pickle.loads(pickle.dumps(error))
    except Exception:  # of a class that pickle cannot build again
        other = (ThalwegError if isinstance(error, ThalwegError) else RuntimeError)(f"{type(error).__name__}: {error}")
    other.add_note(told)
    return other
