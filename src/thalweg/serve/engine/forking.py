"""The processes beside the service: one that forks, and those that compute, which it forks.

These end with it, and it with the service, however they end.
"""

import _thread
import ctypes
import errno
import logging
import logging.handlers
import os
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

from thalweg.core.errors import ThalwegError
from thalweg.serve.engine.iterators import ScoringWithIterators
from thalweg.serve.engine.rejected import WorkerLost
from thalweg.serve.engine.scoring import lower_priority

ANSWER = struct.Struct("ii")  # of the process that forks: errno or 0, and what `waitpid` said of the process before
BEGIN = 5.0  # seconds in which a thread must have begun: where memory is short it may never do so
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl

log = logging.getLogger("thalweg.serve")


def fork() -> int:
    """As `os.fork`."""
    with warnings.catch_warnings():  # of Python 3.12 on: threads of libraries are there, and none of them is used here
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def fork_when_asked(control: socket.socket, scoring: ScoringWithIterators, parent: int) -> NoReturn:
    """Fork a process for each connection that comes, in place of the one before of the same number.

    At the service's end it ends, and they with it.
    """
    try:
        die_with_parent(parent)
        for number in (signal.SIGINT, signal.SIGTERM):  # the service drains, and then ends by itself
            signal.signal(number, signal.SIG_IGN)
        processes: dict[int, int] = {}  # by their numbers
        while True:
            found, files, *_ = socket.recv_fds(control, 1, 1)
            if not found:
                for process in processes.values():
                    _ended(process)
                os._exit(0)
            number = found[0]
            status = _ended(processes.pop(number, 0))
            processes[number], wrong = _forked(control, files, scoring)
            control.sendall(ANSWER.pack(wrong, status))
    except BaseException:
        log.critical("the process that forks has failed", exc_info=True)
    os._exit(1)


def die_with_parent(parent: int) -> None:
    """Let this process be killed when the one that has forked it ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(0)


def _ended(process: int) -> int:
    """Kill a process, if it is still there: what it has ended by."""
    if not process:
        return 0
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def _forked(control: socket.socket, files: list[int], scoring: ScoringWithIterators) -> tuple[int, int]:
    """(a process that answers calls by this connection, 0), or (0, errno)."""
    if not files:
        return 0, errno.EMFILE
    parent = os.getpid()
    try:
        found = fork()
    except OSError as error:
        return 0, error.errno or errno.EAGAIN
    else:
        if not found:
            control.close()
            _compute(Connection(files[0]), scoring, parent)
        return found, 0
    finally:
        os.close(files[0])


def _compute(calls: Connection, scoring: ScoringWithIterators, parent: int) -> NoReturn:
    """Answer calls, one after another, until the connection ends.

    By a new thread: the first one may have used OpenMP before the fork, and would wait for ever for its threads, which
    are not here. It reads the calls.
    """
    die_with_parent(parent)
    answering = CallServer(calls, scoring)
    try:
        # `Thread.start` waits for ever for one that cannot begin
        _thread.start_new_thread(answering.run, (answering.next_call,))
    except RuntimeError:  # no thread is to be had
        answering.run(calls.recv_bytes)
    if answering.begun.wait(BEGIN):
        answering.read_calls()
    log.critical("the process that computes could not begin its thread")
    os._exit(1)


class CallServer(logging.handlers.QueueHandler):
    """Answers calls and sends log records, which the service writes: so no line comes between two halves of another.

    Args:
        calls: To the service.
        scoring: Computes.
    """

    def __init__(self, calls: Connection, scoring: ScoringWithIterators):
        super().__init__(calls)  # pyright: ignore[reportArgumentType]
        self.calls, self.scoring, self.begun = calls, scoring, threading.Event()
        self._read: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for one in map(logging.getLogger, [None, *logging.root.manager.loggerDict]):
            if one.handlers:
                one.handlers = [self]
        logging.lastResort = self  # pyright: ignore[reportAttributeAccessIssue]

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record; called with the lock of the handler."""
        self.calls.send(record)

    def run(self, receive: Callable[[], bytes]) -> None:
        """Until the connection ends, and the process with it."""
        try:
            self.begun.set()
            lower_priority()
            read: Any = ForkingPickler  # as `Connection.recv` does
            while True:
                self._answer(*read.loads(receive()))
        except (EOFError, OSError):  # the service has ended
            pass
        except BaseException:
            self._unreadable()
        finally:
            os._exit(1)

    def read_calls(self) -> NoReturn:
        """Read calls while another thread computes.

        The service sends one before the other's answer. If it had to wait until that is written, and the answer is
        large, each would wait for the other to read.
        """
        try:
            while True:
                self._read.put(self.calls.recv_bytes())
        except (EOFError, OSError):
            self._read.put(None)
            while True:  # what is computed may not be cut short
                signal.pause()
        except BaseException:
            self._unreadable()
        finally:
            os._exit(1)

    def next_call(self) -> bytes:
        """A call that was read. EOFError at the connection's end."""
        found = self._read.get()
        if found is None:
            raise EOFError
        return found

    def _unreadable(self) -> None:
        log.critical("a request could not be read by the process that computes", exc_info=True)

    def _answer(self, what: str, values: tuple[Any, ...], options: dict[str, Any]) -> None:
        try:
            answer = getattr(self.scoring, what)(*values, **options), None
        except BaseException as error:  # a model may raise any
            answer = None, picklable_error(error)
        with suppress(AttributeError, ValueError):  # a process without an output
            sys.stdout.flush()
        try:
            self._send(answer)
        except OSError:
            raise
        except Exception as error:  # pickle cannot write it
            self._send((None, picklable_error(error)))

    def _send(self, answer: Any) -> None:
        self.acquire()
        try:
            self.calls.send(answer)
        finally:
            self.release()


def picklable_error(error: BaseException) -> Exception:
    """The error as another process can read it, with its traceback as a note."""
    told = "".join(traceback.format_exception(error))
    other = _pickled(error) if isinstance(error, Exception) else None
    if other is None:
        text = f"{type(error).__name__}: {_words(error)}"
        other = (
            WorkerLost(text)
            if not isinstance(error, Exception)
            else (ThalwegError if isinstance(error, ThalwegError) else RuntimeError)(text)
        )
    other.add_note(told)
    return other


def _pickled(error: Exception) -> Exception | None:
    """The error as the connection sends it; None for one of a class that it cannot build again."""
    try:
        read: Any = ForkingPickler  # as the connection does
        found = read.loads(read.dumps(error))
    except Exception:
        return None
    return found if isinstance(found, type(error)) else None


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "it cannot be told as text"
