"""What is answered when something is wrong: a status, {code, field, message}, and nothing of the machine.

A path, the name of a class, or a stack frame in a message helps an attacker and no client, so `public` takes them out
of what the library says. What was not expected is logged and answered by "internal".
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from thalweg.core.errors import UserError

PRIVATE = re.compile(r"(?<![\w.:/])(?:~?/|[A-Za-z]:\\)[^\s'\",;)]+|\bthalweg(?:\.\w+)+(?::\w+)?|\bFile \".*")
LONGEST = 500


class HttpError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        code: A word for programs, which stays the same.
        message: A line for people: what is wrong and how to mend it.
        field: Where it is: a query parameter, a key of the body, an input.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As the plain routes answer."""
        return {"code": self.code, "field": self.field, "message": self.message}

    def body_for(self, path: str) -> dict[str, Any]:
        """In the form of the protocol that a path is of."""
        if not path.startswith("/v2"):
            return self.body()
        return {"error": f"{self.field}: {self.message}" if self.field else self.message}


def malformed(message: str, field: str | None = None) -> HttpError:
    """400: the request is not of the form that the route reads."""
    return HttpError(400, "malformed", message, field=field)


def unusable(message: str, field: str | None = None, code: str = "unusable") -> HttpError:
    """422: the form is right, and the model cannot take what it says."""
    return HttpError(422, code, message, field=field)


def line_of(error: UserError) -> str:
    """What is wrong and how to mend it, without where it is."""
    return f"{error.message}; {error.hint}" if error.hint else error.message


def of_user_error(error: UserError, fields: Mapping[str, str]) -> HttpError:
    """422 for what a servable refused; `fields` are the arguments that a client knows, by what it calls them."""
    field = fields.get(error.argument or "")
    hint = error.hint if error.hint and not PRIVATE.search(error.hint) else None
    text = public(error.message if hint is None else f"{error.message}; {hint}")
    return unusable(text, field)


def public(text: str) -> str:
    """A message in one line, without paths and names of classes."""
    return shortened(" ".join(PRIVATE.sub("…", text).split()))


def shortened(text: str) -> str:
    """A message of bounded length."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def internal() -> HttpError:
    """500: nobody expected it; the log says what it was."""
    return HttpError(500, "internal", "the service failed; its log says why")


def of_status(status: int, headers: Mapping[str, str] | None = None) -> HttpError:
    """An error of the web framework: no such route, a method that the route has not."""
    phrase = HTTPStatus(status).phrase.lower()
    return HttpError(status, phrase.replace(" ", "_"), phrase, headers=headers)
