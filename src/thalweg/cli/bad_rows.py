"""The option `--skip-bad`: files and rows that cannot be used are named and left out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli import console
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from thalweg.data.image_files import LeftOut

SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Name and leave out images that cannot be used, and rows that are not finite."),
]


@contextmanager
def offering_skip_bad(given: bool) -> Iterator[None]:
    """Errors about what `--skip-bad` would leave out name it, where it is not `given`."""
    try:
        yield
    except UserError as error:
        if given or not error.skippable:
            raise
        hints = filter(None, (error.hint, "--skip-bad leaves out what cannot be used"))
        raise error.replace(hint="; ".join(hints)) from error


def say(left_out: "Iterable[LeftOut]") -> list[dict[str, str]]:
    """A line for each row or file that is left out; the same for JSON."""
    found = [each._asdict() for each in left_out]
    for each in found:
        console.say(f"left out {each['name']}: {each['reason']}")
    return found
