"""Where the rows of a CSV begin in the file, so that a block of them is read without what lies before it.

A row may hold line ends between quotation marks, and a quotation mark counts only where it begins a value. A file
without any is searched for line ends; one with some is read by Python's own reader, a tenth as fast. So is one whose
lines end in a return alone, and it is in memory meanwhile. Blank lines are no rows. The file's hash comes out of the
same pass.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from thalweg.core.errors import DamagedFile, UserError

CHUNK = 4 << 20  # bytes
NEWLINE, RETURN, QUOTE = b"\n"[0], b"\r"[0], b'"'[0]
LONE_RETURN = re.compile(rb"(?<=\r)(?!\n|\Z)")  # what follows one


class Offsets(NamedTuple):
    """The rows of a file.

    Args:
        rows: Their number, the line of names not among them.
        starts: Byte offsets of the rows 0, step, 2 step, …, and of the file's end.
        sha256: Of the whole file.
    """

    rows: int
    starts: tuple[int, ...]
    sha256: str


def offsets(file: IO[bytes], step: int, *, headless: bool, where: str) -> Offsets:
    """Find every `step`-th row.

    DamagedFile: a quotation mark that nothing closes. UserError: a quoted value beyond the limit of Python's reader.
    """
    digest = hashlib.sha256()
    found = _collect(_without_quotes(file, digest), step, headless)
    if found is None:
        file.seek(0)
        found = _collect(_with_quotes(file, where), step, headless)
        assert found is not None
        file.seek(0)
        digest = hashlib.sha256()
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    rows, starts = found
    return Offsets(rows, (*starts, file.tell()), digest.hexdigest())


def end_of_row(file: IO[bytes], where: str) -> int:
    """Bytes from the place where the file is, at the start of a row, to the end of that row; no more is read."""
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for line in file:
            for part in LONE_RETURN.split(line):
                size += len(part)
                yield part.decode("utf-8", "replace").removeprefix("\ufeff")

    next(filter(None, _records(lines(), where)), None)
    return size


def _collect(parts: Iterator[np.ndarray | None], step: int, headless: bool) -> tuple[int, list[int]] | None:
    """(number of rows, every `step`-th start) of parts of starts; None where a part is."""
    first, kept = 0 if headless else -1, []  # the number of a part's first line, counted as a row
    for part in parts:
        if part is None:
            return None
        numbers = np.arange(first, first + len(part))
        kept += part[(numbers >= 0) & (numbers % step == 0)].tolist()
        first += len(part)
    return max(first, 0), kept


def _without_quotes(file: IO[bytes], digest: "hashlib._Hash") -> Iterator[np.ndarray | None]:
    """Starts of the lines that are not blank, a chunk at a time; None at a quotation mark or a lone return."""
    rest, place = b"", 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        data = rest + chunk
        whole = data.rfind(b"\n") + 1
        yield _lines(data[:whole], place)
        rest, place = data[whole:], place + whole
    yield _lines(rest + b"\n" * bool(rest), place)


def _lines(data: bytes, place: int) -> np.ndarray | None:
    text = np.frombuffer(data, np.uint8)
    if (text == QUOTE).any() or data.count(b"\r") != data.count(b"\r\n"):
        return None
    ends = np.flatnonzero(text == NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    sizes = ends - starts
    blank = (sizes == 0) | ((sizes == 1) & (text[starts] == RETURN))
    return starts[~blank] + place


def _with_quotes(file: IO[bytes], where: str) -> Iterator[np.ndarray]:
    """The same by Python's reader of CSV."""
    place, taken = 0, []

    def lines() -> Iterator[str]:
        for line in file:
            for part in LONE_RETURN.split(line):
                taken.append(part)
                yield part.decode("utf-8", "replace")

    starts, record = [], b""
    for row in _records(lines(), where):
        record, begin = b"".join(taken), place
        place += len(record)
        taken.clear()
        if row:
            starts.append(begin)
        if len(starts) >= 65_536:
            yield np.array(starts, np.int64)
            starts = []
    if record and len([*csv.reader(io.StringIO(record.decode("utf-8", "replace") + "\nx\n", newline=""))]) == 1:
        what = "a quotation mark near the end is never closed"
        raise DamagedFile(what, argument=where, hint="the file is cut or damaged")
    yield np.array(starts, np.int64)


def _records(lines: Iterator[str], where: str) -> Iterator[list[str]]:
    """The cells of each record; a blank line has none."""
    try:
        yield from csv.reader(lines)
    except csv.Error as error:
        what = f"a value is longer than {csv.field_size_limit():,} letters, or its quotation mark is never closed"
        raise UserError(what, argument=where, hint="mend it, or give the table as Parquet") from error
