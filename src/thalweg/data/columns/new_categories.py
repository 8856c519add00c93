"""Categories of a later table that a model does not know, in a line for people."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from thalweg.data.columns.column_reader import OTHER, Column
from thalweg.data.columns.encoding import Columns
from thalweg.data.frames import as_frame, texts

SHOWN = 3  # categories of a column in the line
KEPT = 20  # categories of a column that are told apart in a part of many
REST = None  # stands for the others


def count_new(columns: Columns, frame: Any, where: str, *, parse: bool = False) -> dict[str, Counter[str]]:
    """By column the categories that the model has no number for, with their rows; arguments as of `Columns.encode`.

    Those are new, or so rare in the training that they had none of their own.
    """
    series, found = as_frame(frame, where), dict[str, Counter[str]]()
    words = columns.reading.words(parse)
    for column in columns.columns:
        if column.categories is None:
            continue
        counted = series[column.name].value_counts(name="rows of a category")
        values = texts(counted[column.name], column.name, where, words.difference(column.categories))
        new = unknown(column, dict(zip(values, counted["rows of a category"].to_list(), strict=True)))
        if new:
            found[column.name] = new
    return found


def unknown(column: Column, counts: Mapping[str | None, int]) -> Counter[str]:
    """Those of the texts of a column of categories, with their rows, that are none of them; None is a missing one."""
    known = column.categories or ()
    return Counter({text: rows for text, rows in counts.items() if text is not None and text not in known})


def most_frequent(new: Mapping[str, Counter[str]]) -> dict[str, list[tuple[str | None, int]]]:
    """What JSON holds of it: of each column the most frequent categories, and the rows of the others under `REST`."""
    found: dict[str, list[tuple[str | None, int]]] = {}
    for name, counts in new.items():
        order: list[tuple[str | None, int]] = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        rest = sum(rows for _, rows in order[KEPT:])
        found[name] = order[:KEPT] + [(REST, rest)] * bool(rest)
    return found


def told(columns: Columns, new: Mapping[str, Counter[Any]]) -> str | None:
    """One line: in how many rows of each column, and what they are taken for; None where there is none."""
    if not new:
        return None
    parts = []
    for column in columns.columns:
        if column.name in new:
            counts = new[column.name]
            common = [text for text, _ in counts.most_common() if text is not REST]
            more = f" and {len(common) - SHOWN:,} more" if len(common) > SHOWN else ""
            more = " and others" if REST in counts else more
            names, rows = ", ".join(f"{text!r:.40}" for text in common[:SHOWN]), counts.total()
            taken = f'"{OTHER}", as the rare ones of the training are' if column.other else "unlike every known one"
            parts.append(f"{column.name!r} in {rows:,} row{'s' * (rows > 1)} ({names}{more}), taken for {taken}")
    return f"categories that the model does not know: {'; '.join(parts)}"
