"""The option `--skip-bad`: files and rows that cannot be used are named and left out."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli import console
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from thalweg.data.image_files import LeftOut

SAID = 20  # rows in lines
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Name and leave out images and rows that cannot be used."),
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


def say_first(num_left_out: int, left_out: "Sequence[LeftOut]") -> list[dict[str, str]]:
    """A line for each of the first rows that have no score, and one for the others; the first ones for JSON."""
    told = say(left_out[:SAID])
    if num_left_out > len(told):
        console.say(f"left out {num_left_out - len(told):,} more, whose energy is empty in the scores")
    return [each._asdict() for each in left_out]
