"""What a client of a vision-language model is, and what it is asked."""

import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib import import_module
from time import time
from typing import Any, ClassVar, NamedTuple, Protocol

from thalweg.core.errors import ThalwegError, UserError, suggestion

BUSY = (408, 409, 429)  # beside 5xx: the same request may succeed later
PACKAGE = __name__.rpartition(".")[0]


class Request(NamedTuple):
    """One question: images and text, and what the answer should look like."""

    model: str
    system: str
    prompt: str
    images: tuple[bytes, ...]  # PNG
    schema: dict[str, Any]  # JSON schema of the answer
    temperature: float | None
    max_tokens: int
    repair: tuple[str, str] | None = None  # an answer that was not valid, and what is said about it


class Reply(NamedTuple):
    """What a server answered, and the tokens that it counted."""

    text: str
    input_tokens: int | None  # None: the server does not count them
    output_tokens: int | None
    refused: bool = False  # the model declines to answer


class Unavailable(ThalwegError):
    """The server is busy or out of reach: the same request may succeed later.

    Args:
        message: What happened, in a few words.
        retry_after: Seconds that the server asks to wait for. None: it says nothing.
        perhaps_billed: Whether the server may have answered, unseen.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, perhaps_billed: bool = False):
        super().__init__(message)
        self.retry_after, self.perhaps_billed = retry_after, perhaps_billed


class Rejected(ThalwegError):
    """The server does not take the request: no retry can help."""


class VisionClient(Protocol):
    """A client of one protocol, in a file of its own below `clients`, as a class of the name `Client`."""

    key_variable: ClassVar[str]  # the environment variable with the key
    official_url: ClassVar[str]  # the address without a `base_url`

    def __init__(self, *, url: str, key: str, timeout: float) -> None: ...

    def ask(self, request: Request) -> Reply:
        """The answer; `Unavailable` or `Rejected` where there is none."""
        ...


def find_client(name: str) -> type[VisionClient]:
    """The class of a client by the name of its file; its library is imported when it is built."""
    package = import_module(PACKAGE)
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name != "base"]
    if name not in names:
        raise UserError("is no client", argument="client", value=name, hint=suggestion(name, names))
    return vars(import_module(f"{PACKAGE}.{name}"))["Client"]


def missing_library(name: str) -> UserError:
    """The error for a client whose library is not installed."""
    return UserError(
        f"needs the library {name}", argument="--judge vision", hint="pip install 'thalweg[vision]' brings it"
    )


class FieldError(Exception):
    """A 400: the server may not know a field; `error` is what becomes of it where no field can be left out."""

    def __init__(self, text: str, error: ThalwegError):
        super().__init__(text)
        self.error = error


@contextmanager
def our_errors(library: Any) -> Iterator[None]:
    """Turn the errors of either official library, which are of one make, into `Unavailable` and `Rejected`.

    A 400 becomes a `FieldError`. Nothing is chained: an error of the library holds the request with its key.
    """
    try:
        yield
    except library.APIStatusError as error:
        found = status_error(error.status_code, error.response.headers, str(error))
        raise (FieldError(str(error), found) if error.status_code in (400, 422) else found) from None
    except library.APITimeoutError:
        raise Unavailable("the server did not answer in time", perhaps_billed=True) from None
    except library.APIConnectionError:
        raise Unavailable("the server cannot be reached; check its address and the network") from None
    except Exception as error:  # what a malformed reply gives in the library has no common type
        raise Rejected(f"the server's answer is not of the protocol ({type(error).__name__})") from None


def status_error(status: int, headers: Mapping[str, str], text: str) -> ThalwegError:
    """The error for an HTTP status: `Unavailable` for 408, 409, 429 and 5xx, else `Rejected`.

    The text of the server is left out where it may quote the key.
    """
    if status in BUSY or status >= 500:
        return Unavailable(f"the server answered {status}", retry_after=retry_after(headers))
    if status in (401, 403):
        return Rejected(f"the server refuses the key ({status})")
    return Rejected(f"the server does not take the request ({status}): {' '.join(text.split())[:200]}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from the header Retry-After, a number or a date (RFC 9110); None where it says nothing."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, TypeError):
        return None
