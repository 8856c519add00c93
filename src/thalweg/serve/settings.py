"""What an operator may set of a service; the options of `thalweg serve` have the same names."""

from dataclasses import dataclass

from thalweg.core import check

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of a service.

    Args:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        tokens: SHA-256, in hexadecimal, of each bearer token that is let in; none: no token is asked.
        insecure: Whether an address beside loopback may be served without a token.
        allowed_hosts: Names that a request's Host may have beside loopback's and `host`.
        max_body: Bytes of a request's body.
        max_batch: Rows of a request.
        max_pixels: Pixels of a picture, before it is decoded.
        max_depth: Nesting of JSON.
        queue: Rows that may wait, of which a request counts for half at most.
        deadline: Seconds after which a request is dropped; a request may ask for less.
        drain: Seconds that accepted requests have to end after SIGTERM.
        threads: torch's threads of a call.
        processes: Processes that compute scores at the same time. None: by measurement, model by model.
        page: Whether the page for people is served.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[str, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 8 * MIB
    max_batch: int = 1024
    max_pixels: int = 16_000_000
    max_depth: int = 64
    queue: int = 1024
    deadline: float = 30.0
    drain: float = 10.0
    threads: int = 1
    processes: int | None = None
    page: bool = True

    def __post_init__(self):
        check.whole("port", self.port, 0, 65535)
        for name in ("max_body", "max_batch", "max_pixels", "max_depth", "queue"):
            check.whole(name, getattr(self, name), 1)
        check.positive(deadline=self.deadline)
        check.non_negative(drain=self.drain)
        check.whole("threads", self.threads, 1)
        if self.processes is not None:
            check.whole("processes", self.processes, 1, 64)
