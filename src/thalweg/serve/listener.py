"""The socket that a service listens on."""

import ctypes
import socket
import struct
import sys
from contextlib import suppress

from thalweg.core.errors import UserError

SO_ATTACH_FILTER = 26  # Linux's, which Python does not name
# A program of Linux's packet filter, as (operation, skip if true, skip if not, operand): it drops packets with the flag
# SYN, which begin a connection, and lets the others pass. A packet is seen from its TCP header on.
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


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
