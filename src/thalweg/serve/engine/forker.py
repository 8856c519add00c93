"""Has processes forked that compute, by processes that do nothing else: one that is asked, and a spare one.

They are forked before the service starts. Where the first one ends, those that it has forked end with it, and the spare
one forks others. No third one can be had then: the service has threads, and a process with threads cannot be forked
safely.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from thalweg.bundle.servable import Servable
from thalweg.serve.engine.forking import ANSWER, fork, fork_when_asked
from thalweg.serve.engine.iterators import ScoringWithIterators

FORKING = 2  # processes that fork
PATIENCE = 1.0  # seconds in which one that forks should end by itself
FORKED = 5.0  # seconds in which it must have forked: it may be stopped

log = logging.getLogger("thalweg.serve")


def can_fork() -> bool:
    """Whether a process can compute: a GPU that this one has used cannot be used by one that it forks."""
    return sys.platform == "linux" and not torch.cuda.is_initialized()


class ForkingProcess:
    """A process that forks those that compute.

    Args:
        scoring: What they compute.
        unused: Sockets that it must not hold.
    """

    def __init__(self, scoring: ScoringWithIterators, unused: Sequence[socket.socket]):
        self.control, there = socket.socketpair()
        self.control.settimeout(FORKED)
        own = os.getpid()
        try:
            self.pid = fork()
        except OSError:
            self.control.close()
            raise
        else:
            if not self.pid:
                for one in (self.control, *unused):
                    one.close()
                fork_when_asked(there, scoring, own)
        finally:
            there.close()

    def process(self, number: int) -> tuple[Connection, int, int]:
        """(A connection to a new process, errno where none can be forked, what the one before it has ended by).

        The last is of the process of this number, as `waitpid` says it; 0 where this one has forked none.
        ConnectionError or TimeoutError where this process has ended or is stopped.
        """
        here, there = socket.socketpair()
        try:
            socket.send_fds(self.control, [bytes([number])], [there.fileno()])
            answer = self.control.recv(ANSWER.size, socket.MSG_WAITALL)
            if len(answer) < ANSWER.size:
                raise ConnectionError("the process that forks has ended")
        except OSError:
            here.close()
            raise
        finally:
            there.close()
        return Connection(here.detach()), *ANSWER.unpack(answer)

    def close(self) -> None:
        """End it, and with it what it has forked."""
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # so that a thread that waits for it goes on
        self.control.close()
        with suppress(ChildProcessError):
            until = time.monotonic() + PATIENCE
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > until:  # it was stopped, say
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.005)


class Forker:
    """Has processes forked that compute.

    Args:
        models: By name.
        listener: A socket that other processes must not hold.
    """

    def __init__(self, models: Mapping[str, Servable], listener: socket.socket | None = None):
        self.closed, self.lost = False, set[int]()  # numbers of processes that have ended
        self.here = ScoringWithIterators(models)  # computes where no process is to be had
        self._asking = threading.Lock()
        self._alone = False
        self.forking: list[ForkingProcess] = []
        for stream in (sys.stdout, sys.stderr):  # else what they hold would be written once more
            with suppress(AttributeError, ValueError, OSError):
                stream.flush()
        try:
            for _ in range(FORKING):
                unused = [one.control for one in self.forking] + ([] if listener is None else [listener])
                self.forking.append(ForkingProcess(self.here, unused))
        except OSError:
            if not self.forking:
                raise

    def process(self, number: int) -> Connection | None:
        """A connection to a new process, in place of the one before of this number (0 … 255).

        None where none is to be had: it is told, once.
        """
        with self._asking:
            try:
                found = self._forked(number)
            except OSError as error:
                if not (self._alone or self.closed):
                    until = "" if self.forking else " until the service is started anew"
                    log.critical("no process can be had (%s): a thread computes%s", error.strerror or error, until)
                self._alone = True
                return None
            if self._alone:
                log.warning("a process computes again")
            self._alone = False
            return found

    def close(self) -> None:
        """End all processes, whatever they compute; by any thread."""
        self.closed = True
        for one in list(self.forking):
            one.close()

    def _forked(self, number: int) -> Connection:
        """OSError where no process can be had; one that forks no more is given up."""
        while self.forking and not self.closed:
            try:
                found, wrong, status = self.forking[0].process(number)
            except (ConnectionError, TimeoutError):
                if self.closed:
                    break
                self.forking.pop(0).close()
                if self.forking:
                    log.error("the process that forks has ended; the spare one takes its place")
                continue
            if number in self.lost and status:
                log.error("the process that computes has ended (%s); another one takes its place", _reason(status))
            self.lost.discard(number)
            if wrong:
                found.close()
                raise OSError(wrong, os.strerror(wrong))
            return found
        raise OSError("the process that forks has ended")


def _reason(status: int) -> str:
    """What a process has ended by, as `waitpid` says it."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
