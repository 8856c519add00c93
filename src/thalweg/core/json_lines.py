"""Files of one JSON object a line, read while another process appends to them."""

import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """The rows of a file that grows, by training step: each call of `read` parses only what is new.

    What is no object with a whole `step` is left out, and so is a last line that is incomplete. A row of a step that
    is not after those before it replaces them, as a resumed run goes on from its checkpoint. A file that is replaced
    or cut is read anew; one that is missing has no rows.
    """

    def __init__(self, path: Path):
        self.path = path
        self._begin((0, 0))

    def _begin(self, identity: tuple[int, int]) -> None:
        self._identity, self._offset, self._rows = identity, 0, list[dict[str, Any]]()

    def read(self) -> list[dict[str, Any]]:
        """All rows so far, in the order of their steps; the caller does not change them."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self._identity or found.st_size < self._offset:
                    self._begin((found.st_dev, found.st_ino))
                file.seek(self._offset)
                data = file.read()
        except OSError:
            self._begin((0, 0))
            return []
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines():
            self._rows = _with(self._rows, line)
        return _with([*self._rows], data[whole:])  # a last row without its line feed may be whole all the same


def _with(rows: list[dict[str, Any]], line: bytes) -> list[dict[str, Any]]:
    """The rows with that of a line, where it is one."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return rows
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return rows
    while rows and rows[-1]["step"] >= row["step"]:
        rows.pop()
    rows.append(row)
    return rows
