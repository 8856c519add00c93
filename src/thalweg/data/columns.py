"""Named columns of numbers and categories to rows of numbers, and back: the one place that knows what a column holds.

A column of K categories becomes K columns of 0 and 1. Categories seen once, and those beyond the 100 most frequent,
share one of them, "other"; one never seen joins it, as by Good & Turing (1953) it is as likely as those seen once.
Where nothing is rare, a new category is -1 in all K, farther from every row than the rows are from each other. Columns
are matched by name; a missing value is NaN.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from thalweg.core.errors import DamagedFile, UserError, kind_of
from thalweg.data.cells import check_kinds, is_plain_number, missing

MOST = 100  # categories of a column that are told apart
MOSTLY = 0.9  # share of numbers in a CSV's column above which a text among them is a slip and no category
OTHER = "other"
TRUTH = {"false": 0.0, "true": 1.0}  # in any case: pandas writes True, Arrow and polars true, spreadsheets TRUE
_TIME = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?(\s*[AaPp][Mm])?"
_ZONE = r"(\s*(Z|UTC|[+-]\d{2}:?\d{2}))?"
_DATE = r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})"
MOMENT = re.compile(rf"{_DATE}([T ]{_TIME})?{_ZONE}|{_TIME}{_ZONE}", re.ASCII)  # a date, a time of day, or both


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
    """A fitted transform from frames (pandas, polars, Arrow) to (N, D) float64 and back."""

    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, frame: Any, *, where: str = "X", parse: bool = False, rows: Sequence[int] | None = None) -> Self:
        """Learn what the columns hold. `parse`: texts that are all numbers are numbers, as in a CSV. `rows`: numbers of
        the rows from 0, for messages, where they are some of a file's.

        UserError: no column, one name twice, a column without any value, or of a kind that is neither.
        """
        names = names_of(frame)
        if not names:
            raise UserError(f"{where}: no columns; give a table with at least one")
        check_names(names, where)
        series = as_frame(frame, where)
        rows = range(len(series)) if rows is None else rows
        return cls(tuple(_column(series[name], name, where, parse, rows) for name in names))

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
        extra = [name for name in names if name not in {*self.names, *ignore}]
        if missing:
            also = f" ({_list(extra)} not known)" if extra else ""
            raise UserError(f"{where}: lacks {_list(missing)}{also}; give the {len(self.names)} columns of the fit")
        if extra:
            told = f"{where}: {_list(extra)} not among the {len(self.names)} columns of the fit"
            raise UserError(f"{told}; {mend.format(name=extra[0])}")

    def encode(
        self,
        frame: Any,
        *,
        where: str = "X",
        first: int = 0,
        rows: Sequence[int] | None = None,
        ignore: Iterable[str] = (),
    ) -> np.ndarray:
        """(N, D) float64, NaN where a value is missing. `first` is the number of the first row, for messages, or `rows`
        the number of each.

        UserError, with column, row and value: names that differ from the fit's, texts where numbers were, numbers where
        categories were.
        """
        self.match(names_of(frame), where, ignore=ignore)
        series = as_frame(frame, where)
        rows = range(first, first + len(series)) if rows is None else rows
        parts = [_encode(series[column.name], column, where, rows) for column in self.columns]
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
    def from_list(cls, stored: Sequence[Any]) -> Self:
        """The inverse of `to_list`; DamagedFile for anything else."""
        try:
            found = [
                Column(str(n), None if c is None else tuple(map(str, c)), bool(o), bool(*truth))
                for n, c, o, *truth in stored
            ]
        except (TypeError, ValueError) as error:
            raise DamagedFile("the stored columns are not a list of [name, categories, other]") from error
        return cls(tuple(found))


def check_names(names: Sequence[str], where: str) -> None:
    """UserError where a name comes twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: {_list(twice)} there twice; rename one")


def is_frame(x: Any) -> bool:
    """Whether x is a table with names of columns, all of them texts (pandas' 0, 1, 2, … name nothing)."""
    columns = getattr(x, "column_names", getattr(x, "columns", None))
    if columns is None or len(getattr(x, "shape", ())) != 2 or not len(columns):
        return False
    return all(isinstance(name, str) for name in columns)


def names_of(frame: Any) -> list[str]:
    """The names of a frame's columns."""
    return [str(name) for name in getattr(frame, "column_names", getattr(frame, "columns", ()))]


def as_frame(frame: Any, where: str) -> Any:
    """A narwhals frame, which reads pandas, polars and Arrow alike."""
    import narwhals as nw

    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError as error:
        raise UserError(f"{where}: {kind_of(frame)} is no table; give pandas, polars or an array") from error


def texts(series: Any, name: str, where: str) -> list[str | None]:
    """A column's values as texts, None where one is missing. UserError for what is neither a number nor a text."""
    import narwhals as nw

    if series.dtype.is_temporal():
        raise UserError(f"{where}: column {name!r} holds dates or times; drop it, or turn it into numbers, as an age")
    if series.dtype.is_nested():
        raise UserError(f"{where}: column {name!r} holds lists or structures; drop it, or spread it into columns")
    values = series.to_list()
    if series.dtype == nw.Object:  # pandas' way to hold anything
        check_kinds(values, f"{where}: column {name!r}")
    if series.dtype in (nw.Binary, nw.Unknown) and any(value is not None for value in values):
        kind = "bytes" if isinstance(next(v for v in values if v is not None), bytes) else "neither numbers nor texts"
        raise UserError(f"{where}: column {name!r} holds {kind}; drop it, or store it as texts or numbers")
    return [None if missing(v) else str(v) for v in values]


def _column(series: Any, name: str, where: str, parse: bool, rows: Sequence[int]) -> Column:
    import narwhals as nw

    values = texts(series, name, where) if not _numeric(series) else None
    if values is None:
        numbers = _numbers(series)
        if np.isnan(numbers).all():
            raise UserError(f"{where}: column {name!r} has no value at all; drop it")
        return Column(name, truth=series.dtype == nw.Boolean)
    there = [value for value in values if value is not None]
    if not there:
        raise UserError(f"{where}: column {name!r} has no value at all; drop it")
    found = _parsable(values, name, where, rows) if parse else None
    if found is not None:
        return found
    counts = Counter(there)
    kept = [value for value, count in counts.most_common(MOST) if count > 1]
    return Column(name, tuple(kept), len(kept) < len(counts))


def _parsable(values: list[str | None], name: str, where: str, rows: Sequence[int]) -> Column | None:
    """The column of numbers, or of truth values, that a CSV's texts are; None where they are categories."""
    there = [value for value in values if value is not None]
    numbers = sum(map(is_number, there))
    if numbers == len(there):
        return Column(name)
    if all(value.strip().lower() in TRUTH for value in there):
        return Column(name, truth=True)
    if numbers >= MOSTLY * len(there):
        i = next(i for i, value in enumerate(values) if value is not None and not is_number(value))
        raise UserError(
            f"{where}: column {name!r} holds {values[i]!r:.60} in row {rows[i] + 1} and numbers in {numbers} rows; "
            "mend the value, leave it empty and fit with missing='marginalise', or store the column as texts in Parquet"
        )
    moment = next((value for value in there if MOMENT.fullmatch(value.strip())), None)
    if moment is not None and sum(MOMENT.fullmatch(v.strip()) is not None for v in there) >= MOSTLY * len(there):
        raise UserError(
            f"{where}: column {name!r} holds dates or times such as {moment!r}; drop it, turn it into numbers, as an "
            "age, or store it as texts in Parquet"
        )
    return None


def _encode(series: Any, column: Column, where: str, rows: Sequence[int]) -> np.ndarray:
    if column.categories is None:
        if _numeric(series):
            return _numbers(series)[:, None]
        return _parsed(texts(series, column.name, where), column, where, rows)[:, None]
    if _retyped(series, column, where):
        raise UserError(f"{where}: column {column.name!r} holds numbers where categories were in the fit; retype it")
    place = {value: i for i, value in enumerate(column.categories)}
    codes = np.eye(column.width + 2, column.width)
    codes[column.width], codes[column.width + 1] = -1.0, np.nan  # never seen; missing
    unknown = len(column.categories) if column.other else column.width
    given = texts(series, column.name, where)
    return codes[[column.width + 1 if text is None else place.get(text, unknown) for text in given]]


def _retyped(series: Any, column: Column, where: str) -> bool:
    """Whether all values are numbers, and none of the known categories is. Of what holds anything each value counts for
    itself, so that a row does not depend on the others.
    """
    import narwhals as nw

    if series.dtype == nw.Object:
        return False
    if _numeric(series):
        return not np.isnan(_numbers(series)).all()
    there = [text for text in texts(series, column.name, where) if text is not None]
    known = column.categories or ()
    return bool(there and known) and all(map(is_number, there)) and not any(map(is_number, known))


def _parsed(given: list[str | None], column: Column, where: str, rows: Sequence[int]) -> np.ndarray:
    together = "".join(text for text in given if text is not None)
    if together.isascii() and "_" not in together:  # so that float takes what `is_number` takes, in a third of the time
        with suppress(ValueError):
            return np.array([np.nan if text is None else float(text) for text in given], float)
    found = np.full(len(given), np.nan)
    for i, text in enumerate(given):
        if text is None:
            continue
        if is_number(text):
            found[i] = float(text)
        elif column.truth and text.strip().lower() in TRUTH:
            found[i] = TRUTH[text.strip().lower()]
        else:
            raise UserError(
                f"{where}: column {column.name!r} holds {text!r:.60} in row {rows[i] + 1}, where "
                f"{'True or False was' if column.truth else 'numbers were'} in the fit; mend the value, or leave it "
                "empty and fit with missing='marginalise'"
            )
    return found


def _numeric(series: Any) -> bool:
    import narwhals as nw

    if series.dtype == nw.Object:
        return all(missing(value) or is_plain_number(value) for value in series.to_list())
    return series.dtype.is_numeric() or series.dtype == nw.Boolean or _wide_decimal(series)


def _wide_decimal(series: Any) -> bool:
    """Whether these are Arrow's decimals of 256 bits, which narwhals does not know."""
    return series.implementation.is_pyarrow() and str(series.to_native().type).startswith("decimal")


def _numbers(series: Any) -> np.ndarray:
    import narwhals as nw

    if series.dtype == nw.Object:
        return np.array([np.nan if missing(value) else float(value) for value in series.to_list()], float)
    if series.dtype.is_integer():  # Arrow's cast refuses whole numbers that float64 rounds
        return np.array(series.to_numpy(), float)
    return np.array(series.cast(nw.Float64).to_numpy(), float)


def is_number(text: str) -> bool:
    """Whether a text is a number: sign, ASCII digits, point and exponent, or inf, infinity, nan; blanks around it."""
    if not text.isascii() or "_" in text:  # Python's own writing, 1_000, and digits of other scripts
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names[:5]))}{more}"
