"""Where the rows of a CSV begin: held against Python's reader, with and without quotation marks."""

import csv
import hashlib
import io
import itertools

import numpy as np
import pytest

from thalweg.core.errors import DamagedFile, UserError
from thalweg.scale import csv_offsets
from thalweg.scale.csv_offsets import end_of_row, offsets

TEXTS = {
    "plain": "a,b\n1,2\n3,4\n5,6\n",
    "no end": "a,b\n1,2\n3,4\n5,6",
    "returns": "a,b\r\n1,2\r\n\r\n3,4\r\n",
    "blank": "a,b\n\n\n1,2\n\n3,4\n\n",
    "quoted": 'a,b\n"1\n,2",2\n3,"x""y"\n"5",6\n',
    "inch": 'a,b\n5" pipe,2\n3,4\n7" pipe,9\n',
    "quoted name": '"a\nb",c\n1,2\n3,4\n',
    "names only": "a,b\n",
    "lone returns": 'a,b\r1,2\r\r3,"4\r5"\r',
    "doubled returns": "a,b\r\r\n1,2\r\r\n3,4\r\r\n",
    "mark": "\ufeffa,b\n1,2\n3,4\n",
}


@pytest.mark.parametrize("chunk", [3, 4 << 20])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_rows_begin_where_pythons_reader_finds_them(name, headless, step, chunk, monkeypatch):
    """Whatever the chunks; what lies between two offsets is read as those rows, and a blank line is none."""
    monkeypatch.setattr(csv_offsets, "CHUNK", chunk)
    data = TEXTS[name].encode()
    wanted = [row for row in csv.reader(io.StringIO(data.decode(), newline="")) if row][0 if headless else 1 :]
    found = offsets(io.BytesIO(data), step, headless=headless, where="t.csv")
    assert found.rows == len(wanted)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.starts[-1] == len(data)
    pieces = [data[a:b].decode() for a, b in zip(found.starts, found.starts[1:], strict=False)]
    read = [[row for row in csv.reader(io.StringIO(piece, newline="")) if row] for piece in pieces]
    assert read == [wanted[i : i + step] for i in range(0, len(wanted), step)]


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("name", [name for name in TEXTS if name != "names only"])
def test_the_first_row_is_read_alone(name, headless):
    data = TEXTS[name].encode()
    wanted = [row for row in csv.reader(io.StringIO(data.decode(), newline="")) if row][0 if headless else 1]
    start = offsets(io.BytesIO(data), 9, headless=headless, where="t.csv").starts[0]
    file = io.BytesIO(data)
    file.seek(start)
    row = data[start : start + end_of_row(file, "t.csv")].decode()
    assert [row for row in csv.reader(io.StringIO(row, newline="")) if row] == [wanted]


def test_a_large_file_with_quotation_marks(monkeypatch):
    """Rows beyond the number that one part of the pass holds are counted on."""
    lines = [f'{i},"x{end}"\n' for i, end in zip(range(70_000), itertools.cycle(("\n", "", "")), strict=False)]
    data = ("a,b\n" + "".join(lines)).encode()
    found = offsets(io.BytesIO(data), 20_000, headless=False, where="t.csv")
    starts = 4 + np.cumsum([0, *map(len, lines)])
    assert found.starts == (*(int(starts[i]) for i in range(0, 70_000, 20_000)), len(data))


def test_a_quotation_mark_that_nothing_closes():
    with pytest.raises(DamagedFile, match="never closed"):
        offsets(io.BytesIO(b'a,b\n1,2\n3,"4\n5,6\n'), 1, headless=False, where="t.csv")


def test_a_quoted_value_beyond_pythons_limit():
    data = b'a,b\n1,"' + b"x" * csv.field_size_limit() + b'x"\n'
    with pytest.raises(UserError, match=r"longer than 131,072 letters, or its quotation mark is never closed; mend it"):
        offsets(io.BytesIO(data), 1, headless=False, where="t.csv")
