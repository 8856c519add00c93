"""Whether the first line of a CSV names its columns, and whether commas separate them.

A header is told from data by what stands below it: a text above a number is a name. A line with numbers in it and no
such text could be either, as in `2019,2020,2021` above rows of numbers; it is taken for what the fitted names say, or
refused with the option that settles it, since a wrong guess would lose a row or shift the names without a sign.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from thalweg.core.errors import UserError
from thalweg.data.number_text import is_number, readings

FRACTION = re.compile(r"[+-]?\d*[.,]\d+(e[+-]?\d+)?", re.IGNORECASE)  # hardly a name
DECIMAL_COMMA = re.compile(r"\d,\d")
SEPARATORS = ((";", "semicolons", ";"), ("\t", "tabs", r"\t"), ("|", "bars", "|"))
SETTLE = "say --header if it names the columns, --no-header if it is a row"


class Known(NamedTuple):
    """What a fit knows of a table: the names that a header must hold, and whether there was none."""

    names: Sequence[str] = ()
    headless: bool = False


def is_header(path: Path, first: Sequence[str], second: Sequence[str], gaps: Sequence[str], known: Known) -> bool:
    """Whether `first` names the columns of `second`, the next line that is not blank.

    `gaps`: texts that stand for a missing value. UserError where neither the lines nor the fit tell.
    """
    named = bool(known.names) and set(known.names) <= set(first)
    numbers = [cell for cell in first if _is_number(cell)]
    if not known.headless and (named or not numbers):
        return True
    if known.headless and numbers and not named:
        return False
    below = zip(first, second, strict=False)
    above = any(_is_number(b) and not _is_number(a) and a.strip() not in gaps for a, b in below)
    if above and not known.headless and not any(FRACTION.fullmatch(cell.strip()) for cell in first):
        return True
    what = repr((numbers or first)[0])[:60]
    unlike = ", and is unlike the table of the fit" if known.names and not named else ""
    raise UserError(f"{path}: the first line, with {what}, could be names or data{unlike}; {SETTLE}")


def _is_number(cell: str) -> bool:
    """Whether a value is a number in any writing, 19,4 among them."""
    return bool(readings([cell.strip()]))


def check_separator(path: Path, first: Sequence[str], second: Sequence[str]) -> None:
    """UserError where the lines are one value each for want of commas, with the command that converts the file."""
    if len(first) != 1:
        return
    rest = ",".join(second)  # decimal commas have cut it
    for separator, name, written in SEPARATORS:
        if separator in first[0]:
            decimal = ", decimal=','" if DECIMAL_COMMA.search(rest) else ""
            command = by_pandas(path, "csv", f", sep='{written}'{decimal}")
            raise UserError(f"{path}: its columns are separated by {name}; separate them by commas, as in: {command}")
    names, values = first[0].split(), rest.split()
    if len(names) == len(values) > 1 and any(map(is_number, values)):
        command = by_pandas(path, "csv", r", sep=r'\s+'")
        raise UserError(f"{path}: its columns are separated by blanks; separate them by commas, as in: {command}")


def by_pandas(path: Path, kind: str, how: str) -> str:
    """A command that writes the table in a file of this kind as a CSV beside it."""
    out = path.with_name(f"{path.stem}-commas.csv")
    code = f"pd.read_{kind}({str(path)!r}{how}).to_csv({str(out)!r}, index=False)"
    return f'python -c "import pandas as pd; {code}"'
