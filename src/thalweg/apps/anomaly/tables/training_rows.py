"""What a detector is fitted on: rows of a table in a file, chosen by a label and drawn evenly, with their numbers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thalweg.core.errors import UserError
from thalweg.data.columns.column_reader import TRUTH
from thalweg.data.columns.number_formats import is_number
from thalweg.data.formats.base import Table
from thalweg.data.frames import as_frame

MAX_ROWS = 50_000
SHOWN = 8  # values of a label in a message


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table to fit on: the file, the column that is a label (`normal`: its value in the rows to use; None: all rows),
    the columns to leave out, and the most rows to use, drawn evenly from the whole file where it has more. `header`:
    whether a CSV's first line names the columns; None: it must show.

    Labels are compared by value: 0, 0.0 and False are one, as are true and True.
    """

    path: Path
    target: str | None = None
    normal: str | None = None
    drop: Sequence[str] = ()
    max_rows: int = MAX_ROWS
    seed: int = 0
    header: bool | None = None


class Drawn(NamedTuple):
    """An Arrow table of the rows drawn, their numbers in the file from 0, and how many there were to draw from."""

    frame: Any
    rows: np.ndarray
    seen: int


def draw(table: Table, source: Source, words: Collection[str] = ()) -> Drawn:
    """At most `max_rows` of the wanted rows, each as likely as any other; a label in `words` is none. UserError where
    there is none.
    """
    import pyarrow as pa

    random, labels = np.random.default_rng(source.seed), dict[str, None]()
    held, keys, rows = None, np.zeros(0), np.zeros(0, int)
    first = seen = 0
    for block in table.blocks({*table.names} - ({*source.drop} - {source.target})):
        chosen = np.arange(len(block))
        if source.normal is not None:
            chosen = np.flatnonzero(_wanted(block, source, str(table.path), labels, words))
        rows, first = np.r_[rows, first + chosen], first + len(block)
        seen += len(chosen)
        block = block.take(chosen)
        held = block if held is None else pa.concat_tables([held, block])
        keys = np.r_[keys, random.random(len(chosen))]
        if len(keys) > source.max_rows:
            kept = np.sort(np.argpartition(keys, source.max_rows - 1)[: source.max_rows])
            held, keys, rows = held.take(kept), keys[kept], rows[kept]
    if held is None or not len(rows):
        raise UserError(f"{table.path}: no rows to fit on{_of_normal(source, labels)}; give a table with rows")
    return Drawn(held, rows, seen)


def _wanted(block: Any, source: Source, where: str, labels: dict[str, None], words: Collection[str] = ()) -> np.ndarray:
    """Which rows have the normal label, (N,); the labels met are added to `labels`."""
    given = as_frame(block.select([source.target]), where)[source.target].to_list()
    given = [None if isinstance(value, str) and value in words else value for value in given]
    given = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in given]
    values = {value: _label(value) for value in set(_hashable(given, source.target, where)) if value is not None}
    for value in sorted(map(str, values)):
        if len(labels) <= SHOWN:
            labels[value] = None
    wanted = _label(source.normal)
    return np.array([value is not None and values[value] == wanted for value in given], bool)


def _hashable(values: list[Any], name: str | None, where: str) -> list[Any]:
    if any(isinstance(value, list | dict) for value in values):
        raise UserError(f"{where}: column {name!r} holds lists or structures, which are no labels; name another column")
    return values


def _label(value: Any) -> float | str:
    """A label by its value: a number where it is one or a truth value, else the text."""
    text = str(value)
    if text.strip().lower() in TRUTH:
        return TRUTH[text.strip().lower()]
    return float(text) if is_number(text) else text


def _of_normal(source: Source, labels: dict[str, None]) -> str:
    if source.normal is None:
        return ""
    shown = ", ".join([*labels][:SHOWN]) + (", …" if len(labels) > SHOWN else "")
    return f" with {source.target} = {source.normal}" + (f"; its values are {shown[:200]}" if labels else "")
