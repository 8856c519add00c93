"""What a column of a table holds, and its values as numbers."""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from thalweg.core.errors import ROW, UserError
from thalweg.data.bad_rows import BadRows
from thalweg.data.columns.cell_values import missing
from thalweg.data.columns.number_formats import Writing, near
from thalweg.data.columns.reading_options import Reading, option
from thalweg.data.columns.text_columns import doubt, refuse_doubt, refuse_moments
from thalweg.data.frames import is_categorical, is_numeric, numbers, texts

MOST = 100  # categories of a column that are told apart
OTHER = "other"
NEW = -1.0  # all numbers of a category that is new, where none stands for others
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

    def one_hot(self, texts: Sequence[str | None]) -> np.ndarray:
        """(N, width) of texts of a column of categories; None is missing."""
        known = self.categories or ()
        index = {value: i for i, value in enumerate(known)}
        codes = np.eye(self.width + 2, self.width)
        codes[self.width], codes[self.width + 1] = NEW, np.nan  # a new category; missing
        unknown = len(known) if self.other else self.width
        return codes[[self.width + 1 if text is None else index.get(text, unknown) for text in texts]]


@dataclass(frozen=True)
class ColumnReader:
    """Reads the columns of one table.

    Args:
        where: The table in messages.
        parse: Whether texts may be numbers and missing values, as in a CSV.
        rows: The number of each row, for messages.
        reading: The user's options.
        offered: Whether messages name those options.
        bad_rows: What becomes of rows with a text among numbers; None: the first is an error.
    """

    where: str
    parse: bool
    rows: Sequence[int]
    reading: Reading
    offered: bool = False
    bad_rows: BadRows | None = None

    def refuse(self, message: str, hint: str, row: int | None = None) -> UserError:
        """The error of a column of this table, about a row of those given."""
        return UserError(message, argument=self.where, hint=hint, row=None if row is None else int(self.rows[row]))

    def column(self, series: Any, name: str) -> Column:
        """The content of a column; UserError where it has no value, or is in doubt."""
        declared = self.reading.dtype.get(name)
        if is_numeric(series) and (declared != "category" or not _is_whole(series)):
            if declared == "category":
                hint = "store whole numbers or texts"
                raise self.refuse(f"column {name!r} holds numbers with fractions, which are no categories", hint)
            if np.isnan(numbers(series)).all():
                raise self.refuse(f"column {name!r} has no value at all", "drop it")
            return Column(name, truth=_is_truth(series))
        values = texts(series, name, self.where, self.reading.words(self.parse))
        if all(value is None for value in values):
            word = next((text for text in texts(series, name, self.where) if text), None)
            why = "" if word is None else f", as {word!r} means a missing one"
            raise self.refuse(f"column {name!r} has no value at all{why}", "drop it")
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
            message = f"column {name!r} holds {values[i]!r:.60} in {ROW}, which is no number"
            raise self.refuse(message, "correct the value", i)
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
                found = numbers(series)
                return self._truths(found, column, found)[:, None]
            given = texts(series, name, self.where, words)
            return self._truths(self._parsed(given, column), column, given)[:, None]
        return column.one_hot(self._categories(series, column, words))

    def values(self, series: Any, column: Column) -> np.ndarray:
        """(N,) of the column's own values: float64, NaN where one is missing, or objects, texts and None."""
        if column.categories is None:
            return self.encode(series, column)[:, 0]
        found = np.empty(len(series), object)
        found[:] = self._categories(series, column, self.reading.words(self.parse))
        return found

    def _categories(self, series: Any, column: Column, words: frozenset[str]) -> list[str | None]:
        """The texts of a column of categories; UserError where all are numbers and no known category is one.

        In an object column each value counts for itself, so that a row does not depend on the others.
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
                self._refuse_text(text, column, i)
                continue
            found[i] = number
        return found

    def _truths(self, found: np.ndarray, column: Column, given: Any) -> np.ndarray:
        """The numbers of a column; a row of a column of true and false that is neither 1 nor 0 is refused."""
        if column.truth:
            for i in np.flatnonzero(~is_truth(found)).tolist():
                self._refuse_text(str(given[i]), column, i)
                found[i] = np.nan
        return found

    def _refuse_text(self, text: str, column: Column, i: int) -> None:
        """A text stands in row i where numbers were in the fit."""
        writing, wanted = self.reading.writing, "True or False was" if column.truth else "numbers were"
        hint = "correct the value"
        if self.offered:
            hint += f", or leave it empty and fit with {option(self.where, 'missing', 'marginalise')}"
        if not column.truth and near(text) is not None:
            mark = f" and {writing.thousands!r} between thousands" if writing.thousands else ""
            hint = f"write it as in the fit, with {writing.decimal!r} as decimal point{mark}"
        holds, then = f"column {column.name!r} holds {text!r:.60}", f", where {wanted} in the fit"
        error = self.refuse(f"{holds} in {ROW}{then}", hint, i)
        if self.bad_rows is None:
            raise error
        self.bad_rows.refuse(error, int(self.rows[i]), f"{holds}{then}")


def is_truth(values: np.ndarray) -> np.ndarray:
    """Which of these numbers are 1, 0 or missing."""
    return np.isnan(values) | (values == 0) | (values == 1)


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


def _is_truth(series: Any) -> bool:
    """Whether numbers are true and false, by their type or, where it may hold anything, all that are there."""
    import narwhals as nw

    if series.dtype != nw.Object:
        return series.dtype == nw.Boolean
    return all(missing(value) or isinstance(value, bool | np.bool_) for value in series.to_list())


def _is_whole(series: Any) -> bool:
    """Whether the type is of whole numbers, or of anything but numbers."""
    import narwhals as nw

    return series.dtype.is_integer() or series.dtype == nw.Boolean or not series.dtype.is_numeric()
