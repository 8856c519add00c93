"""Whether the first line of a CSV names its columns, and whether commas separate them.

A text above a number is a name. A first line with numbers and no such text is ambiguous, as `2019,2020,2021` above rows
of numbers. Names that a model knows then decide. Otherwise the line is refused, with the option that decides.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from thalweg.core.errors import UserError
from thalweg.data.columns.number_formats import is_number, readings
from thalweg.data.columns.reading_options import NA_WORDS

FRACTION = re.compile(r"[+-]?\d*[.,]\d+(e[+-]?\d+)?", re.IGNORECASE)  # unlikely as a name
SEPARATORS = ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"))
EXPECTED = "a CSV is UTF-8 text of one line a row, with commas between the values and a point in decimal numbers"
SETTLE = "say --header if it names the columns, --no-header if it is a row"


class Known(NamedTuple):
    """The names in the header of a model's tables, and whether they have none."""

    names: Sequence[str] = ()
    headless: bool = False


def is_header(path: Path, first: Sequence[str], second: Sequence[str], known: Known) -> bool:
    """Whether `first` names the columns of `second`, the next line that is not blank.

    UserError where neither the lines nor the known names decide.
    """
    named = bool(known.names) and set(known.names) <= set(first)
    numbers = [cell for cell in first if _is_number(cell)]
    if not known.headless and (named or not numbers):
        return True
    if known.headless and numbers and not named:
        return False
    below = zip(first, second, strict=False)
    above = any(_is_number(b) and not _is_number(a) and a.strip() not in ("", *NA_WORDS) for a, b in below)
    if above and not known.headless and not any(FRACTION.fullmatch(cell.strip()) for cell in first):
        return True
    what = repr((numbers or first)[0])[:60]
    unlike = ", and is unlike the table of the fit" if known.names and not named else ""
    raise UserError(f"the first line, with {what}, could be names or data{unlike}", argument=str(path), hint=SETTLE)


def _is_number(cell: str) -> bool:
    """Whether a value is a number in any writing, 19,4 among them."""
    return bool(readings([cell.strip()]))


def check_separator(path: Path, first: Sequence[str], second: Sequence[str]) -> None:
    """UserError where the lines are one value each for want of commas."""
    if len(first) != 1:
        return
    values = ",".join(second).split()  # decimal commas have cut it
    found = next((name for separator, name in SEPARATORS if separator in first[0]), None)
    if found is None and len(first[0].split()) == len(values) > 1 and any(map(is_number, values)):
        found = "blanks"
    if found is not None:
        raise UserError(f"its columns are separated by {found}", argument=str(path), hint=EXPECTED)
