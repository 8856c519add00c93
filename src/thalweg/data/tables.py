"""Tables in files, block by block: what is larger than memory is read and scored a part at a time."""

from pathlib import Path

from thalweg.core.errors import UserError
from thalweg.data.columns.encoding import check_names
from thalweg.data.columns.number_formats import is_number
from thalweg.data.csv_header import EXPECTED, Known
from thalweg.data.formats.base import Table, TableFormat, formats, packed, reading_table
from thalweg.data.formats.csv import csv_table
from thalweg.data.run_folders import refuse_run


def open_table(path: str | Path, *, header: bool | None = None, known: Known | None = None) -> Table:
    """The table in a file, its header read and checked.

    `header`: whether the first line of a CSV names the columns; where it is not given the lines must tell, or what is
    `known` by a model. UserError: no file, a folder, an empty file, another kind, one name twice, a first line that
    could be either.
    """
    path = Path(path)
    where, suffix = str(path), path.suffix.lower()
    kinds = {ending: each for ending, each in formats().items() if isinstance(each, TableFormat)}
    if path.is_dir():
        refuse_run(path)
        raise UserError("a folder, where a table was wanted", argument=where, hint=f"give a {' or '.join(kinds)} file")
    if not path.exists():
        raise UserError("no such file", argument=where, hint="check the spelling and the working directory")
    if suffix not in kinds:
        kind = packed(path) if suffix != ".xlsx" else None
        hint = f"it is compressed ({kind}), so unpack it" if kind else EXPECTED
        message = f"{path.suffix or 'no ending'}: a table is {' or '.join(kinds)}"
        raise UserError(message, argument=where, hint=hint)
    if not path.stat().st_size:
        raise UserError("an empty file", argument=where, hint="give one with a header and rows")
    if header is not None and not kinds[suffix].takes_header:
        hint = f"leave out --{'' if header else 'no-'}header"
        what = type(kinds[suffix]).__name__
        raise UserError(f"{what} holds the names of its columns", argument=where, hint=hint)
    with reading_table(path):
        table = kinds[suffix].open(path, header, known or Known())
    check_names(table.names, where)
    if not table.names:
        raise UserError("no columns", argument=where, hint="give a table with at least one")
    return table


def csv_in_memory(data: bytes, where: str, known: Known) -> Table:
    """The table in the bytes of a CSV, as `open_table` has that of a file; `where` is what messages call it.

    The first line names the columns, but is a row where those `known` have no names and it holds a number, and not all
    of 0, 1, …. A name that is there twice is not refused.
    """
    path = Path(where)
    with reading_table(path, data):
        table = csv_table(path, data, True, known)
        named = set(known.names) <= set(table.names)
        if known.headless and not named and any(map(is_number, table.names)):
            table = csv_table(path, data, False, known)
    if not table.names:
        raise UserError("must begin with a line that names the columns", argument=where)
    return table
