"""What a table to learn from holds: columns of numbers and of categories, columns that are left out, gaps.

A column that only counts the rows or tells the time is left out or refused (`data.columns.counters`), as rows of the
next table would all be strange in it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from thalweg.core.errors import ROW, UserError
from thalweg.data.columns.counters import UNNAMED, verdict
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.reading_options import IN_MEMORY, Reading, option
from thalweg.data.frames import as_frame, is_numeric, names_of, texts

SHOWN = 5  # columns of a sort that a line names
SORTS = {"numbers": "numbers", "truth": "true and false", "categories": "categories"}
MANY = 20  # rows from which on it is no accident that no text comes twice


class Contents(NamedTuple):
    """A table, read and encoded.

    Args:
        columns: What each column holds, without those that are left out.
        x: The rows (N, D) float64, NaN where a value is missing.
        rows: The number of each row in the table, from 0.
        where: What messages call the table.
        values: The number of different values of each column.
        gaps: By column, the words that meant a missing value ("" for an empty one), with their numbers of rows.
        notes: What to warn of, a line each.
    """

    columns: Columns
    x: np.ndarray
    rows: Sequence[int]
    where: str
    values: Mapping[str, int]
    gaps: Mapping[str, Counter[str]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """By the sort of column: the names and their numbers of different values, or why they are left out; and by
        column the words that meant a missing value, with their rows.
        """
        kinds = {
            c.name: "truth" if c.truth else "numbers" if c.categories is None else "categories"
            for c in self.columns.columns
        }
        found = {kind: {name: self.values[name] for name, k in kinds.items() if k == kind} for kind in SORTS}
        missing = {name: dict(words) for name, words in self.gaps.items()}
        return {**found, "left_out": dict(self.columns.left_out), "missing": missing}

    def check(self, *, gaps: bool) -> None:
        """UserError, with column and row, for an infinite value, and, unless `gaps` may be, for a missing one, with the
        word that meant it and the number of rows.
        """
        bad = np.isinf(self.x) if gaps else ~np.isfinite(self.x)
        if not bad.any():
            return
        i, place = np.argwhere(bad)[0]
        name = self.columns.names[self.columns.owners[place]]
        row = int(self.rows[i])
        if np.isinf(self.x[i, place]):
            text = f"must be finite, and column {name!r} is infinite in {ROW}"
            raise UserError(text, argument=self.where, hint="mend it", row=row)
        hint = f"drop the row, or fit with {option(self.where, 'missing', 'marginalise')}"
        words = Counter({word: rows for word, rows in self.gaps[name].items() if word})
        if words:
            none = () if self.where == IN_MEMORY else ("",)
            hint += f"; if {next(iter(words))!r} is a value of its own, say {option(self.where, 'na_values', *none)}"
        more = int(np.isnan(self.x[:, place]).sum()) - 1
        where = f"in {ROW} and {more} more" if more else f"in {ROW}"
        message = f"must hold a value in each row, and column {name!r} is missing ({_words(words) or 'NaN'}) {where}"
        raise UserError(message, argument=self.where, hint=hint, row=row)


def describe(contents: Mapping[str, Mapping[str, Any]]) -> str:
    """One line of `Contents.to_dict`, which names five columns of a sort."""
    parts = []
    for kind, name_of_kind in SORTS.items():
        names = [f"{name}: {count}" for name, count in contents[kind].items()]
        parts += [f"{len(names)} of {name_of_kind} ({_short(names)})"] if names else []
    out = [f"{name!r} {why}" for name, why in contents["left_out"].items()]
    parts += [f"{len(out)} left out ({_short(out)})"] if out else []
    missing = [f"{name}: {_words(words)}" for name, words in contents["missing"].items()]
    return f"columns, with the number of values: {', '.join(parts)}{f'; missing: {_short(missing)}' if missing else ''}"


def learn(
    frame: Any,
    reading: Reading,
    *,
    where: str = IN_MEMORY,
    parse: bool = False,
    rows: Sequence[int] | None = None,
    offered: bool = True,
    named: bool = True,
) -> Contents:
    """What the table holds; arguments as of `Columns.fit`. UserError for what cannot be used, or is in doubt.

    `named`: whether the columns have names; of those that have none, which are matched by order, none is left out.
    """
    columns = Columns.fit(frame, where=where, parse=parse, rows=rows, reading=reading, offered=offered)
    rows = range(len(as_frame(frame, where))) if rows is None else rows
    x = columns.encode(frame, where=where, rows=rows, parse=parse, offered=offered)
    left_out, notes = _useless(columns, x, names_of(frame), rows, where, offered) if named else ([], [])
    if len(left_out) == len(columns.columns):
        name, why = left_out[0]
        raise UserError(f"must hold a column of measurements: {name!r} {why}", argument=where)
    x = x[:, ~np.isin(columns.owners, [columns.names.index(name) for name, _ in left_out])]
    columns = columns.without(left_out)
    values, gaps = _counted(columns, frame, x, where, parse)
    return Contents(columns, x, rows, where, values, gaps, notes)


def _useless(
    columns: Columns, x: np.ndarray, names: Sequence[str], rows: Sequence[int], where: str, offered: bool
) -> tuple[list[tuple[str, str]], list[str]]:
    """The columns to leave out, and what to warn of. UserError for one that the user must tell about."""
    left_out, notes, named = [], [], False
    for i, column in enumerate(columns.columns):
        named = named or not UNNAMED.fullmatch(names[i])
        if column.categories == () and len(x) >= MANY:
            notes.append(f"column {column.name!r} holds another text in each row, which tells nothing; drop it")
        if column.categories is not None or column.truth or columns.reading.dtype.get(column.name) == "number":
            continue
        found = verdict(x[:, columns.owners == i][:, 0], column.name, rows, first=not named)
        if found is None:
            continue
        if found.action == "leave":
            left_out.append((column.name, found.why))
            continue
        if offered:
            keep = f"say {option(where, 'dtype', {column.name: 'number'})}"
            drop = "drop it" if where == IN_MEMORY else f"leave it out with {option(where, 'drop', column.name)}"
        else:
            keep, drop = f"for a file say data.dtype={{{column.name}: number}}", "leave it out"
        if found.action == "refuse":
            hint = f"{drop}, turn it into an age, or {keep} to take it for a measurement"
            raise UserError(f"column {column.name!r} {found.why}", argument=where, hint=hint)
        notes.append(f"column {column.name!r} {found.why}; {drop} if so")
    return left_out, notes


def _counted(
    columns: Columns, frame: Any, x: np.ndarray, where: str, parse: bool
) -> tuple[dict[str, int], dict[str, Counter[str]]]:
    """The different values of each column, and the words and gaps in it."""
    series, words = as_frame(frame, where), columns.reading.words(parse)
    values, gaps = {}, {}
    for i, column in enumerate(columns.columns):
        part = x[:, columns.owners == i]
        count = int(np.isnan(part[:, 0]).sum())
        if count:
            found = Counter[str]()
            if not is_numeric(series[column.name]):
                given = texts(series[column.name], column.name, where)
                found.update(text for text in given if text in words)
            found[""] += count - found.total()
            gaps[column.name] = +found
        if column.categories is None:
            values[column.name] = len(np.unique(part[~np.isnan(part)]))
        else:
            values[column.name] = len({*texts(series[column.name], column.name, where, words)} - {None})
    return values, gaps


def _words(words: Mapping[str, int]) -> str:
    """`'NA' in 265 rows, empty in 3`."""
    found = Counter(words).most_common(SHOWN)
    return ", ".join(f"{repr(word) if word else 'empty'} in {count} row{'s' * (count > 1)}" for word, count in found)


def _short(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
