"""Named columns of numbers and categories as rows of numbers, and back.

A column of K categories becomes K columns of 0 and 1. Categories that occur once, and those beyond the 100 most
frequent, share one of them, "other"; so does a new category, which by Good & Turing (1953) is as likely as those that
occur once. Where there is no "other", a new category is -1 in all K, farther from every row than the rows are from each
other. Columns are matched by name; a missing value is NaN.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.bad_rows import BadRows
from thalweg.data.columns.column_reader import NEW, OTHER, Column, ColumnReader, is_truth
from thalweg.data.columns.reading_options import Reading
from thalweg.data.frames import as_frame, names_of


@dataclass(frozen=True)
class Columns:
    """A fitted transform from frames (pandas, polars, Arrow) to (N, D) float64 and back.

    Args:
        columns: What each column holds.
        reading: How texts are read.
        left_out: Columns that are not used, and why; later tables may have them or not.
    """

    columns: tuple[Column, ...]
    reading: Reading = Reading()  # noqa: RUF009
    left_out: tuple[tuple[str, str], ...] = ()

    @classmethod
    def fit(
        cls,
        frame: Any,
        *,
        where: str = "X",
        parse: bool = False,
        rows: Sequence[int] | None = None,
        reading: Reading | None = None,
        offered: bool | None = None,
    ) -> Self:
        """Learn what the columns hold.

        UserError: no column, one name twice, a column without any value, of a kind that is neither, or in doubt.

        Args:
            frame: The table.
            where: What messages call it.
            parse: Texts that are all numbers are numbers, and some words are missing values, as in a CSV.
            rows: Numbers of the rows from 0, for messages, where they are some of a file's.
            reading: How texts are read; None: as usual.
            offered: Whether messages offer the options that change it; None: where `reading` is given.
        """
        names = names_of(frame)
        if not names:
            raise UserError("no columns", argument=where, hint="give a table with at least one")
        check_names(names, where)
        unknown = [name for name in (reading.dtype if reading else ()) if name not in names]
        if unknown:
            raise UserError(f"no column {unknown[0]!r} in {where}", argument="dtype")
        series = as_frame(frame, where)
        rows = range(len(series)) if rows is None else rows
        offered = reading is not None if offered is None else offered
        read = ColumnReader(where, parse, rows, reading or Reading(), offered)
        return cls(tuple(read.column(series[name], name) for name in names), read.reading)

    def without(self, left_out: Iterable[tuple[str, str]]) -> Self:
        """The same without these columns, (name, why) each."""
        out = tuple(left_out)
        gone = {name for name, _ in out}
        return replace(self, columns=tuple(c for c in self.columns if c.name not in gone), left_out=self.left_out + out)

    @property
    def names(self) -> list[str]:
        """Names in the order of the fit."""
        return [column.name for column in self.columns]

    @property
    def owners(self) -> np.ndarray:
        """For each of the D encoded columns the number of the column it belongs to, (D,)."""
        return np.repeat(np.arange(len(self.columns)), [column.width for column in self.columns])

    def match(
        self, names: Iterable[str], where: str = "X", *, ignore: Iterable[str] = (), mend: str = "drop it"
    ) -> None:
        """UserError unless the names are those of the fit, in any order; those in `ignore` may be there too.

        `mend`: the remedy for an unknown column, {name!r}.
        """
        names = list(map(str, names))
        check_names(names, where)
        missing = [name for name in self.names if name not in names]
        extra = [name for name in names if name not in {*self.names, *ignore, *(name for name, _ in self.left_out)}]
        if missing:
            also = f" ({_list(extra)} not known)" if extra else ""
            hint = f"give the {len(self.names)} columns of the fit"
            raise UserError(f"lacks {_list(missing)}{also}", argument=where, hint=hint)
        if extra:
            unknown = f"{_list(extra)} not among the {len(self.names)} columns of the fit"
            raise UserError(unknown, argument=where, hint=mend.format(name=extra[0]))

    def encode(
        self,
        frame: Any,
        *,
        where: str = "X",
        first: int = 0,
        rows: Sequence[int] | None = None,
        ignore: Iterable[str] = (),
        parse: bool = False,
        offered: bool = True,
        bad_rows: BadRows | None = None,
    ) -> np.ndarray:
        """(N, D) float64, NaN where a value is missing. `first` is the number of the first row, for messages, or `rows`
        the number of each. `parse`: some words are missing values, as in a CSV; a category of the fit is none.
        `offered`: messages name the options of a fit. `bad_rows`: what becomes of rows with a text where numbers were.

        UserError, with column, row and value: names that differ from the fit's, texts where numbers were, numbers where
        categories were.
        """
        self.match(names_of(frame), where, ignore=ignore)
        series = as_frame(frame, where)
        rows = range(first, first + len(series)) if rows is None else rows
        read = ColumnReader(where, parse, rows, self.reading, offered, bad_rows)
        parts = [read.encode(series[column.name], column) for column in self.columns]
        return np.concatenate(parts, axis=1)

    def encode_arrays(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """`encode` of columns in arrays (N,), float64 or str and None: to make a frame takes as long as to score a row.

        Each text counts for itself: one of digits among categories that are words is a new one, whatever is beside it.
        None where a column of true and false holds another number, or a value is of another type: `encode` says what
        it is taken for, or what is wrong.
        """
        parts, words = [], self.reading.words(False)
        for column in self.columns:
            values = arrays[column.name].reshape(-1)
            if column.categories is None:
                if values.dtype != np.float64 or (column.truth and not is_truth(values).all()):
                    return None
                parts.append(values[:, None])
                continue
            texts, missing = values.tolist(), words.difference(column.categories)
            if not all(text is None or type(text) is str for text in texts):
                return None
            parts.append(column.one_hot([None if text in missing else text for text in texts]))
        return np.concatenate(parts, axis=1)

    def decode(self, x: np.ndarray) -> list[list[float | str]]:
        """Rows (B, D) as values by column: a number, or the category that is nearest; "other" for a new one."""
        start, found = 0, []
        for column in self.columns:
            part = x[:, start : start + column.width]
            start += column.width
            if column.categories is None:
                found.append(part[:, 0].tolist())
            else:
                names, new = [*column.categories, OTHER], (part == NEW).all(1)  # which no sample is
                found.append([OTHER if is_new else names[i] for i, is_new in zip(part.argmax(1), new, strict=True)])
        return [list(row) for row in zip(*found, strict=True)]

    def values(self, frame: Any) -> list[list[Any]]:
        """The frame's own values by row, in the order of the fit."""
        series = as_frame(frame, "X")
        return [list(row) for row in zip(*(series[name].to_list() for name in self.names), strict=True)]

    def to_list(self) -> list[list[Any]]:
        """What JSON holds of it."""
        stored = [(c, None if c.categories is None else list(c.categories)) for c in self.columns]
        return [[c.name, categories, c.other, *([True] if c.truth else [])] for c, categories in stored]

    @classmethod
    def from_list(
        cls, stored: Sequence[Any], reading: Reading | None = None, left_out: Iterable[tuple[str, str]] = ()
    ) -> Self:
        """The inverse of `to_list`; DamagedFile for anything else."""
        try:
            found = [
                Column(str(n), None if c is None else tuple(map(str, c)), bool(o), bool(*truth))
                for n, c, o, *truth in stored
            ]
        except (TypeError, ValueError) as error:
            raise DamagedFile("must be a list of [name, categories, other]", argument="columns") from error
        return cls(tuple(found), reading or Reading(), tuple((str(name), str(why)) for name, why in left_out))


def check_names(names: Sequence[str], where: str) -> None:
    """UserError where a name comes twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{_list(twice)} there twice", argument=where, hint="rename one")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names[:5]))}{more}"
