"""Who may ask: names of this host, pages of this origin, and content types that a page elsewhere cannot send unasked.

A page of another site can reach a service on loopback in two ways: under a name of its own that it lets point here
(DNS rebinding), which the Host header tells, and by requests that a browser sends without asking first, which have one
of three content types. `Origin`, which a browser sets on every POST of a page, must be of an allowed host too.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from thalweg.serve.errors import HttpError
from thalweg.serve.safety.observed import reply
from thalweg.serve.settings import LOOPBACK, ServeSettings

SIMPLE = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
HEALTH = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")  # asked by address, and hold no data
ANY = "*"


class Origin:
    """Refuses other hosts and origins, 403, and content types of forms, 415."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]):
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] != "http" or scope["path"] in HEALTH
        refused = None if known else self._refused(scope, dict(scope["headers"]))
        if refused is None:
            await self.app(scope, receive, send)
        else:
            await reply(send, scope, refused)

    def allows(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request is let in; `headers`: the scope's, by name."""
        return self._refused(scope, headers) is None

    def _refused(self, scope: Scope, headers: Mapping[bytes, bytes]) -> HttpError | None:
        if not self._allowed(headers.get(b"host", b"").decode("latin-1")):
            return HttpError(403, "forbidden_host", "must name a host that this service answers to", field="host")
        origin = headers.get(b"origin")
        if origin is not None and not self._allowed(_netloc(origin.decode("latin-1"))):
            return HttpError(403, "forbidden_origin", "must come from a page of this service", field="origin")
        if scope["method"] == "POST":  # browsers ask for leave before they send other methods that change anything
            media = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
            protocol = scope["path"].startswith("/v2/") and not media and origin is None  # as tritonclient sends it
            if media in SIMPLE or (not media and not protocol):
                return HttpError(
                    415,
                    "unsupported_media_type",
                    "must declare a content type that the route reads, as application/json",
                    field="content-type",
                )
        return None

    def _allowed(self, host: str) -> bool:
        return ANY in self.hosts or name_of(host) in self.hosts


def _netloc(origin: str) -> str:
    return urlsplit(origin).netloc if "//" in origin else ""


@lru_cache(256)
def name_of(host: str) -> str:
    """The name in a Host header, without its port: `localhost:8000` is localhost, `[::1]:8000` is ::1."""
    host = host.strip().lower()
    if host.startswith("["):
        name, end, port = host[1:].partition("]")
        return name if end and (not port or (port[0] == ":" and port[1:].isdigit())) else ""
    name, colon, port = host.partition(":")
    return name if not colon or port.isdigit() else ""


def hosts_of(settings: ServeSettings) -> tuple[str, ...]:
    """Loopback, the address that is listened on, and what the operator adds."""
    return (*LOOPBACK, settings.host, *settings.allowed_hosts)
