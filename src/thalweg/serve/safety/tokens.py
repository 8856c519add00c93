"""Bearer tokens: kept as hashes, compared in constant time.

Hashing first makes the time of a comparison independent of how much of a token was guessed; all hashes are compared,
so that it does not tell which one it was.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from thalweg.core.errors import UserError
from thalweg.serve.errors import HttpError
from thalweg.serve.safety.observed import reply
from thalweg.serve.safety.origin import HEALTH
from thalweg.serve.settings import LOOPBACK, ServeSettings

VARIABLE = "THALWEG_TOKEN"
SHORTEST = 16  # characters
OPEN = ("/", "/favicon.ico", *HEALTH)  # the page's own files lie below /page/ and hold no data
STATIC = "/page/"


class Tokens:
    """401 without one of the tokens, where there are any."""

    def __init__(self, app: ASGIApp, hashes: Sequence[str]):
        self.app, self.hashes = app, [bytes.fromhex(one) for one in hashes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.hashes or self._open(scope) or self._known(scope):
            await self.app(scope, receive, send)
            return
        text, told = "must have a valid bearer token", {"WWW-Authenticate": "Bearer"}
        await reply(send, scope, HttpError(401, "unauthorized", text, field="authorization", headers=told))

    def allows(self, scope: Scope) -> bool:
        """Whether a request is let in."""
        return not self.hashes or self._known(scope)

    def _open(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith(STATIC))

    def _known(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        found = [hmac.compare_digest(digest, one) for one in self.hashes]
        return scheme.lower() == b"bearer" and any(found)


def hashed(token: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(file: Path | None) -> tuple[str, ...]:
    """The hashes of the tokens in a file, one a line, or of THALWEG_TOKEN; none where neither is given."""
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("must be a text file that can be read", argument=str(file)) from error
        where, tokens = str(file), [line.strip() for line in lines if line.strip()]
        if not tokens:
            raise UserError("must hold a token a line", argument=where, hint="make one by `openssl rand -hex 32`")
    else:
        where, tokens = VARIABLE, [os.environ[VARIABLE].strip()] if os.environ.get(VARIABLE, "").strip() else []
    if any(len(token) < SHORTEST or not token.isascii() or " " in token for token in tokens):
        hint = "make one by `openssl rand -hex 32`"
        raise UserError(f"must hold tokens of {SHORTEST} characters or more, without spaces", argument=where, hint=hint)
    return tuple(hashed(token) for token in tokens)


def require_token(settings: ServeSettings) -> None:
    """UserError for an address that others can reach, without a token."""
    if settings.host not in LOOPBACK and not settings.tokens and not settings.insecure:
        hint = f"pass --token-file FILE or set {VARIABLE}; --insecure serves everyone who can reach it"
        raise UserError("must be loopback where no token is asked", argument="--host", value=settings.host, hint=hint)
