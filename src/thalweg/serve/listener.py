"""The socket that a service listens on."""

import socket

from thalweg.core.errors import UserError


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
