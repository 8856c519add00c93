"""The socket that a service listens on, and how connections are taken from it."""

import asyncio
import ctypes
import logging
import resource
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from thalweg.core.errors import UserError

SO_ATTACH_FILTER = 26  # Linux's, which Python does not name
# A program of Linux's packet filter, as (operation, skip if true, skip if not, operand): it drops packets with the flag
# SYN, which begin a connection, and lets the others pass. A packet is seen from its TCP header on.
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
ACCEPTED = 128  # connections that are taken in one turn of the loop
RETRY = 1.0  # seconds after which connections are taken again where there were no files for them
QUIET = 60.0  # seconds between two lines of the log that say so

log = logging.getLogger("thalweg.serve")


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address; nothing listens yet. UserError for an address that is not to be had."""
    found: socket.socket | None = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named: else asyncio leaves Nagle's delay on.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        if found is not None:
            found.close()
        text = f"must be an address of this machine and a free port ({error.strerror})"
        raise UserError(text, argument="--port", value=port, hint="pass --port 0 for a free one") from error
    found.setblocking(False)
    return found


def stop_beginning(listener: socket.socket) -> None:
    """Let no new connection begin, while those that wait may still be accepted: closing a listener resets those.

    Who asks now is not answered, and is refused when it asks again a second later. On Linux; elsewhere nothing.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in DROP_SYN))
    program = struct.pack("HL", len(DROP_SYN), ctypes.addressof(code))
    with suppress(OSError):  # a kernel without it
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Acceptor:
    """Takes the connections of a listener.

    In place of asyncio's own server: where files run out, that one tries again ever more often, with a line each time.

    Args:
        listener: It listens.
        protocol: Makes the protocol of a connection.
        tasks: Holds what is under way.
    """

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], tasks: set[asyncio.Task[Any]]
    ):
        self.listener, self.protocol, self.tasks = listener, protocol, tasks
        self.loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._told = float("-inf")
        listener.setblocking(False)
        self._take()

    def close(self) -> None:
        """Take those that wait, and close the listener: closing it alone would reset them."""
        with suppress(OSError):
            while self._accept():
                pass
        self.loop.remove_reader(self.listener)
        if self._again is not None:
            self._again.cancel()
        self.listener.close()

    def _take(self) -> None:
        self._again = None
        self.loop.add_reader(self.listener, self._some)

    def _some(self) -> None:
        try:
            for _ in range(ACCEPTED):
                if not self._accept():
                    break
        except OSError as error:
            self.loop.remove_reader(self.listener)
            self._again = self.loop.call_later(RETRY, self._take)
            self._tell(error)

    def _accept(self) -> bool:
        """Take a connection; False where none waits. OSError where it cannot be had."""
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        connection.setblocking(False)
        task = self.loop.create_task(self.loop.connect_accepted_socket(self.protocol, connection))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return True

    def _tell(self, error: OSError) -> None:
        if self.loop.time() < self._told + QUIET:
            return
        self._told = self.loop.time()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        log.error("no connection can be taken for now: %s; a process may have %d (ulimit -n)", error.strerror, limit)
