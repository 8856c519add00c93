"""Named columns of numbers and categories to rows of numbers, and back: the one place that knows what a column holds.

A column of K categories becomes K columns of 0 and 1. Categories seen once, and those beyond the 100 most frequent,
share one of them, "other"; one never seen joins it, as by Good & Turing (1953) it is as likely as those seen once.
Where nothing is rare, a new category is -1 in all K, farther from every row than the rows are from each other. Columns
are matched by name; a missing value is NaN.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.columns.number_formats import Writing, near
from thalweg.data.columns.reading_options import Reading, option
from thalweg.data.columns.text_columns import doubt, refuse_doubt, refuse_moments
from thalweg.data.frames import as_frame, is_categorical, is_numeric, names_of, numbers, texts

MOST = 100  # categories of a column that are told apart
OTHER = "other"
TRUTH = {"false": 0.0, "true": 1.0}  # in any case: pandas writes True, Arrow and polars true, spreadsheets TRUE


class Column(NamedTuple):
    """A name and what the column holds: categories, the most frequent first, or None for numbers (`truth`: 0 and 1)."""

    name: str
    categories: tuple[str, ...] | None = None
    other: bool = False
    truth: bool = False

    @property
    def width(self) -> int:
        """Columns of numbers that it becomes."""
        return 1 if self.categories is None else len(self.categories) + self.other


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
    ) -> Self:
        """Learn what the columns hold.

        UserError: no column, one name twice, a column without any value, of a kind that is neither, or in doubt.

        Args:
            frame: The table.
            where: What messages call it.
            parse: Texts that are all numbers are numbers, and some words are missing values, as in a CSV.
            rows: Numbers of the rows from 0, for messages, where they are some of a file's.
            reading: How texts are read; None: as usual, and messages offer no option to change it.
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
        read = _Reader(where, parse, rows, reading or Reading(), reading is not None)
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
        """UserError unless the names are those of the fit, in any order; those in `ignore` may be there too. `mend`:
        what to do with one too many, {name!r}.
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
            told = f"{_list(extra)} not among the {len(self.names)} columns of the fit"
            raise UserError(told, argument=where, hint=mend.format(name=extra[0]))

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
    ) -> np.ndarray:
        """(N, D) float64, NaN where a value is missing. `first` is the number of the first row, for messages, or `rows`
        the number of each. `parse`: some words are missing values, as in a CSV; a category of the fit is none.
        `offered`: messages name the options of a fit.

        UserError, with column, row and value: names that differ from the fit's, texts where numbers were, numbers where
        categories were.
        """
        self.match(names_of(frame), where, ignore=ignore)
        series = as_frame(frame, where)
        rows = range(first, first + len(series)) if rows is None else rows
        read = _Reader(where, parse, rows, self.reading, offered)
        parts = [read.encode(series[column.name], column) for column in self.columns]
        return np.concatenate(parts, axis=1)

    def decode(self, x: np.ndarray) -> list[list[float | str]]:
        """Rows (B, D) as values by column: a number, or the category that is nearest."""
        start, found = 0, []
        for column in self.columns:
            part = x[:, start : start + column.width]
            start += column.width
            if column.categories is None:
                found.append(part[:, 0].tolist())
            else:
                names = [*column.categories, *([OTHER] if column.other else [])]
                found.append([names[i] for i in part.argmax(1)])
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
            raise DamagedFile("the stored columns are not a list of [name, categories, other]") from error
        return cls(tuple(found), reading or Reading(), tuple((str(name), str(why)) for name, why in left_out))


def check_names(names: Sequence[str], where: str) -> None:
    """UserError where a name comes twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{_list(twice)} there twice", argument=where, hint="rename one")


@dataclass(frozen=True)
class _Reader:
    """How the columns of one table are read."""

    where: str
    parse: bool
    rows: Sequence[int]
    reading: Reading
    offered: bool = False

    def refuse(self, message: str, hint: str) -> UserError:
        return UserError(message, argument=self.where, hint=hint)

    def column(self, series: Any, name: str) -> Column:
        """What a column holds."""
        import narwhals as nw

        declared = self.reading.dtype.get(name)
        if is_numeric(series) and (declared != "category" or not _is_whole(series)):
            if declared == "category":
                hint = "store whole numbers or texts"
                raise self.refuse(f"column {name!r} holds numbers with fractions, which are no categories", hint)
            if np.isnan(numbers(series)).all():
                raise self.refuse(f"column {name!r} has no value at all", "drop it")
            return Column(name, truth=series.dtype == nw.Boolean)
        values = texts(series, name, self.where, self.reading.words(self.parse))
        if all(value is None for value in values):
            word = next((text for text in texts(series, name, self.where) if text), None)
            told = "" if word is None else f", as {word!r} means a missing one"
            raise self.refuse(f"column {name!r} has no value at all{told}", "drop it")
        if declared != "category" and not is_categorical(series):
            found = self._numbers(values, name, declared)
            if found is not None:
                return found
        counts = Counter(value for value in values if value is not None)
        kept = [value for value, count in counts.most_common(MOST) if count > 1]
        return Column(name, tuple(kept), len(kept) < len(counts))

    def _numbers(self, values: Sequence[str | None], name: str, declared: str | None) -> Column | None:
        """The column of numbers, or of truth values, that texts are; None for categories. UserError where in doubt."""
        there = {value for value in values if value is not None}
        writing, parse = self.reading.writing, self.parse or declared == "number" or not self.reading.writing.is_plain
        if parse and _are_numbers(there, writing):
            return Column(name)
        if self.parse and all(value.strip().lower() in TRUTH for value in there):
            return Column(name, truth=True)
        if declared == "number":
            i = next(i for i, v in enumerate(values) if v is not None and writing.number(v) is None)
            message = f"column {name!r} holds {values[i]!r:.60} in row {self.rows[i] + 1}, which is no number"
            raise self.refuse(message, "mend the value")
        found = doubt(values, writing, declared=not parse)
        if found is not None:
            refuse_doubt(found, values, name, self.where, self.rows, offered=self.offered)
        refuse_moments(values, name, self.where, offered=self.offered)
        return None

    def encode(self, series: Any, column: Column) -> np.ndarray:
        """(N, width) of the values."""
        name, words = column.name, self.reading.words(self.parse)
        if column.categories is None:
            if is_numeric(series):
                return numbers(series)[:, None]
            return self._parsed(texts(series, name, self.where, words), column)[:, None]
        given = self._categories(series, column, words)
        place = {value: i for i, value in enumerate(column.categories)}
        codes = np.eye(column.width + 2, column.width)
        codes[column.width], codes[column.width + 1] = -1.0, np.nan  # never seen; missing
        unknown = len(column.categories) if column.other else column.width
        return codes[[column.width + 1 if text is None else place.get(text, unknown) for text in given]]

    def _categories(self, series: Any, column: Column, words: frozenset[str]) -> list[str | None]:
        """The texts of a column of categories. UserError where all are numbers and none of the known categories is: of
        what holds anything each value counts for itself, so that a row does not depend on the others.
        """
        import narwhals as nw

        known, name = column.categories or (), column.name
        given = texts(series, name, self.where, words.difference(known))
        if series.dtype == nw.Object or (self.reading.dtype.get(name) == "category" and _is_whole(series)):
            return given
        there = [text for text in given if text is not None]
        number = self.reading.writing.number
        retyped = bool(known) and all(number(t) is not None for t in there) and all(number(c) is None for c in known)
        if there and (retyped or is_numeric(series)):
            raise self.refuse(f"column {name!r} holds numbers where categories were in the fit", "retype it")
        return given

    def _parsed(self, given: list[str | None], column: Column) -> np.ndarray:
        writing = self.reading.writing
        together = "".join(text for text in given if text is not None)
        if writing.is_plain and together.isascii() and "_" not in together:  # float takes what `is_number` takes then,
            with suppress(ValueError):  # in a third of the time
                return np.array([np.nan if text is None else float(text) for text in given], float)
        found = np.full(len(given), np.nan)
        for i, text in enumerate(given):
            if text is None:
                continue
            number = writing.number(text)
            if number is None and column.truth:
                number = TRUTH.get(text.strip().lower())
            if number is None:
                wanted = "True or False was" if column.truth else "numbers were"
                at = f"column {column.name!r} holds {text!r:.60} in row {self.rows[i] + 1}"
                hint = "mend the value"
                if self.offered:
                    hint += f", or leave it empty and fit with {option(self.where, 'missing', 'marginalise')}"
                if near(text) is not None:
                    mark = f" and {writing.thousands!r} between thousands" if writing.thousands else ""
                    hint = f"write it as in the fit, with {writing.decimal!r} as decimal point{mark}"
                raise self.refuse(f"{at}, where {wanted} in the fit", hint)
            found[i] = number
        return found


def _are_numbers(texts: Collection[str], writing: Writing) -> bool:
    """Whether all texts are numbers in this writing."""
    together = "".join(texts)
    if not (writing.is_plain and together.isascii() and "_" not in together):
        return all(writing.number(text) is not None for text in texts)
    try:
        for text in texts:
            float(text)  # takes what `is_number` takes then, in a third of the time
    except ValueError:
        return False
    return True


def _is_whole(series: Any) -> bool:
    """Whether the type is of whole numbers, or of anything but numbers."""
    import narwhals as nw

    return series.dtype.is_integer() or series.dtype == nw.Boolean or not series.dtype.is_numeric()


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names[:5]))}{more}"
