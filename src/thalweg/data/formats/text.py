"""Text of one word, or other short text, a line: UTF-8, with or without a byte order mark."""

import re
from pathlib import Path
from typing import NamedTuple

from thalweg.core.errors import UserError
from thalweg.data.alphabet import control_character, normal, shortened
from thalweg.data.formats.base import FileFormat, check_size, packed, reading_array

LINE_END = re.compile(r"\r\n|\r|\n")
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Lines(NamedTuple):
    """The texts of a file, and the number of the line of each, from 1."""

    texts: list[str]
    numbers: list[int]


class TextLines(FileFormat):
    """One text a line, in the normal form NFC, spaces at its ends stripped; blank lines are dropped."""

    suffixes = (".txt",)
    holds = ("text",)

    def read(self, path: Path) -> Lines:
        """The texts, in order and with repetitions. UserError for bytes that are no text, and where there is none."""
        where = str(path)
        if not path.is_file():
            what = "a folder, where a file was wanted" if path.exists() else "no such file or folder"
            raise UserError(what, argument=where, hint="check the spelling and the working directory")
        check_size(path.stat().st_size, where)
        with reading_array(path):
            raw = path.read_bytes()
        found = [(i, normal(line.strip())) for i, line in enumerate(LINE_END.split(_decoded(raw, path)), 1)]
        found = [(i, line) for i, line in found if line]
        if not found:
            raise UserError("holds no text", argument=where, hint="write one text a line")
        for i, line in found:
            if (sign := control_character(line)) is not None:
                what = f"line {i} holds the control character {sign}"
                raise UserError(what, argument=where, value=shortened(line), hint="remove it")
        return Lines([line for _, line in found], [i for i, _ in found])


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = packed(path)
        if kind:
            raise UserError(f"compressed ({kind})", argument=str(path), hint="unpack it first") from error
        line = len(re.findall(rb"\r\n|\r|\n", raw[: error.start])) + 1
        hint = "it is UTF-16, so save it as UTF-8" if raw.startswith(UTF16) else "save it as UTF-8"
        raise UserError(f"line {line} is not UTF-8 text", argument=str(path), hint=hint) from error
