"""Draws the rows that a detector is fitted to from a table in a file: those of a label, each as likely as any other."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from thalweg.core.errors import UserError
from thalweg.data.columns.column_reader import TRUTH
from thalweg.data.columns.number_formats import is_number
from thalweg.data.formats.base import Table
from thalweg.data.frames import as_frame

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 50_000
SHOWN = 8  # values of a label in a message


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table to fit on. Labels are compared by value: 0, 0.0 and False are one, as are true and True.

    Args:
        path: The file, CSV or Parquet.
        target: The column of labels, which is not learned. None: there is none.
        normal: The label of the rows to use. None: all rows.
        drop: Columns to leave out.
        max_rows: The most rows to use, drawn evenly from the whole file where it has more.
        seed: Of the draw.
        header: Whether a CSV's first line names the columns. None: it must be clear from the lines.
    """

    path: Path
    target: str | None = None
    normal: str | None = None
    drop: Sequence[str] = ()
    max_rows: int = MAX_ROWS
    seed: int = 0
    header: bool | None = None


class Drawn(NamedTuple):
    """Rows that were drawn.

    Args:
        frame: An Arrow table.
        rows: Their numbers in the file, from 0, (n,).
        num_available: How many there were to draw from.
    """

    frame: "pa.Table"
    rows: np.ndarray
    num_available: int


def draw(table: Table, source: Source, words: Collection[str] = ()) -> Drawn:
    """At most `max_rows` of the wanted rows, each as likely as any other; a label in `words` is none. UserError where
    there is none.
    """
    import pyarrow as pa

    random, labels = np.random.default_rng(source.seed), dict[str, None]()
    kept, keys, rows = None, np.zeros(0), np.zeros(0, int)
    first = num_available = 0
    for block in table.blocks({*table.names} - ({*source.drop} - {source.target})):
        chosen = np.arange(len(block))
        if source.normal is not None:
            chosen = np.flatnonzero(_wanted(block, source, str(table.path), labels, words))
        rows, first = np.r_[rows, first + chosen], first + len(block)
        num_available += len(chosen)
        block = block.take(chosen)
        kept = block if kept is None else pa.concat_tables([kept, block])
        keys = np.r_[keys, random.random(len(chosen))]
        if len(keys) > source.max_rows:
            least = np.sort(np.argpartition(keys, source.max_rows - 1)[: source.max_rows])
            kept, keys, rows = kept.take(least), keys[least], rows[least]
    if kept is None or not len(rows):
        raise UserError(f"must hold rows to fit on{_of_normal(source, labels)}", argument=str(table.path))
    return Drawn(kept, rows, num_available)


def _wanted(
    block: "pa.Table", source: Source, where: str, labels: dict[str, None], words: Collection[str] = ()
) -> np.ndarray:
    """Which rows have the normal label, (N,); the labels met are added to `labels`."""
    given = as_frame(block.select([source.target]), where)[source.target].to_list()
    given = [None if isinstance(value, str) and value in words else value for value in given]
    given = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in given]
    if any(isinstance(value, list | dict) for value in given):
        text = f"must hold labels in column {source.target!r}, which holds lists or structures"
        raise UserError(text, argument=where, hint="name another column")
    values = {value: _label(value) for value in set(given) if value is not None}
    for value in sorted(map(str, values)):
        if len(labels) <= SHOWN:
            labels[value] = None
    wanted = _label(source.normal)
    return np.array([value is not None and values[value] == wanted for value in given], bool)


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
    return f" with {source.target} = {source.normal}" + (f", whose values are {shown[:200]}" if labels else "")
