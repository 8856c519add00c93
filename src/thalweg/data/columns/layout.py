"""The columns of a model's rows, by which tables in files and in memory are read.

Columns are matched by name, in any order. Where one side has no names (an array, a CSV without a header) they are
matched by order, with a warning in the log.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from thalweg.core.errors import DamagedFile, UserError, suggestion
from thalweg.data.columns.counters import UNNAMED, verdict
from thalweg.data.columns.encoding import Columns
from thalweg.data.csv_header import Known
from thalweg.data.float32_check import check_single, check_whole_numbers
from thalweg.data.frames import as_frame, names_of

SHOWN = 5  # names in a message
log = logging.getLogger("thalweg")


@dataclass(frozen=True)
class Layout:
    """The columns that rows of numbers (N, D) were read from.

    Args:
        columns: The content of each column of the table; None for arrays.
        headless: The names are 0, 1, 2, … since the table had none.
        ignored: Columns that were left out; a later table may have them or not.
    """

    columns: Columns | None = None
    headless: bool = False
    ignored: tuple[str, ...] = ()

    @classmethod
    def fit(cls, frame: Any, **how: Any) -> Self:
        """Learn the columns of a frame; arguments of `fit_encode`."""
        return cls.fit_encode(frame, **how)[0]

    @classmethod
    def fit_encode(
        cls,
        frame: Any,
        *,
        where: str,
        first: int = 0,
        headless: bool = False,
        parse: bool = False,
        ignored: Iterable[str] = (),
    ) -> tuple[Self, np.ndarray]:
        """Learn the columns of a frame; with the rows (N, D) float64. `parse`: texts may be numbers, as in a CSV.
        `first`: the number of the first row, for messages.

        UserError: a column of texts, whole numbers that float64 takes for one another, or numbers in float32 whose
        spread that hides.
        """
        rows = range(first, first + len(as_frame(frame, where))) if first else None
        columns, ignored = Columns.fit(frame, where=where, parse=parse, rows=rows), list(ignored)
        x = columns.encode(frame, where=where, parse=parse, rows=rows)
        if not headless and (index := _index(columns, x)) is not None:
            log.warning("%s: the first column, %r, is left out, as it numbers the rows", where, index)
            columns, x, ignored = columns.without([(index, "numbers the rows")]), x[:, 1:], [*ignored, index]
        texts = [column.name for column in columns.columns if column.categories is not None]
        if texts:
            hint = f"encode them as numbers, or leave them out, as by --drop {texts[0]!r}"
            raise UserError(f"not numbers in {listed(texts)}", argument=where, hint=hint)
        series = as_frame(frame, where)
        for name, values, single in zip(columns.names, x.T, _singles(series, columns.names), strict=True):
            check_whole_numbers(values, series[name], f"column {name!r}", where)
            if single:
                check_single(values, f"column {name!r}", where)
        return cls(columns, headless, tuple(ignored)), x

    @property
    def names(self) -> list[str] | None:
        """The names of the columns, where they have any."""
        return None if self.columns is None or self.headless else self.columns.names

    @property
    def known(self) -> Known:
        """What tells the first line of a later CSV."""
        return Known(self.names or (), self.headless)

    def check(self, names: Collection[str], where: str, *, drop: Iterable[str] = (), mend: str = "drop it") -> None:
        """UserError where a table with columns of these names cannot be rows of this model.

        `mend`: the remedy for a column that the model does not know, {name!r}.
        """
        needed = [name for name in drop if name in (self.names or ())]
        if needed:
            raise UserError(f"must keep {listed(needed)}, as the model needs it", argument=where, hint="do not drop it")
        if self.names is not None:
            self.columns.match(names, where, ignore={*self.ignored, *drop}, mend=mend)  # pyright: ignore[reportOptionalMemberAccess]

    def encode(
        self,
        frame: Any,
        *,
        where: str = "x",
        first: int = 0,
        headless: bool = False,
        parse: bool = False,
        drop: Iterable[str] = (),
    ) -> np.ndarray:
        """(N, D) float64 in the order of the model, NaN where a value is missing. `headless`: the frame's names are
        none, so it is taken by order. `first`: the number of the first row, for messages. UserError: a missing or an
        unknown name, another number of columns, texts.
        """
        present = [name for name in names_of(frame) if name not in {*drop, *self.ignored}]
        if self.names is not None and not headless:
            self.check(names_of(frame), where, drop=drop)
            ignore = {*self.ignored, *drop}
            assert self.columns is not None  # as it has names
            return self.columns.encode(frame, where=where, first=first, ignore=ignore, parse=parse, offered=False)
        if self.columns is None:
            columns = Layout.fit(frame, where=where, first=first, headless=True, parse=parse).columns
            assert columns is not None  # of a table
        elif len(present) != len(self.columns.columns):
            condition = f"must have {len(self.columns.columns)} columns, as the model; it has {len(present)}"
            raise UserError(condition, argument=where)
        else:
            pairs = zip(self.columns.columns, present, strict=True)
            columns = Columns(tuple(column._replace(name=name) for column, name in pairs))
        if self.names is not None:
            order = short(self.names)
            log.warning("%s: no names, so its columns are taken in the order of the model's: %s", where, order)
        elif not headless:
            order = short(present)
            log.warning("%s: the model knows no names, so the columns are taken in this order: %s", where, order)
        ignore = set(names_of(frame)) - set(present)
        return columns.encode(frame, where=where, first=first, ignore=ignore, parse=parse, offered=False)

    def singles(self, frame: Any) -> list[bool]:
        """Which of the model's columns come in float32, in its order."""
        names = self.names or [name for name in names_of(frame) if name not in self.ignored]
        return _singles(as_frame(frame, "x"), names)

    def with_last(self, names: Sequence[str], where: str) -> tuple[Self, list[int]]:
        """The same columns with these ones last, in the order given; with where each column was before.

        UserError: a table without names, a name that is not there or comes twice, all columns.
        """
        if self.names is None or self.columns is None:
            text = f"must be none, as the columns of {where} have no names"
            raise UserError(text, argument="data.targets", value=[*names], hint="give the table a header")
        unknown = [name for name in names if name not in self.names]
        if unknown:
            hint = suggestion(unknown[0], self.names)
            raise UserError(f"must be columns of {where}", argument="data.targets", value=unknown[0], hint=hint)
        if len({*names}) < len(names) or len(names) == len(self.names):
            text = "must be names that differ, and leave a column for x"
            raise UserError(text, argument="data.targets", value=[*names])
        order = [i for i, name in enumerate(self.names) if name not in names]
        order += [self.names.index(name) for name in names]
        columns = replace(self.columns, columns=tuple(self.columns.columns[i] for i in order))
        return replace(self, columns=columns), order

    def to_list(self) -> list[list[Any]] | None:
        """What JSON holds of the columns."""
        return None if self.columns is None else self.columns.to_list()

    @classmethod
    def from_list(cls, stored: Any, *, headless: bool = False, ignored: Iterable[str] = ()) -> Self:
        """The inverse of `to_list`; DamagedFile for anything else."""
        if not (stored is None or isinstance(stored, list)):
            raise DamagedFile("must be a list", argument="columns")
        return cls(None if stored is None else Columns.from_list(stored), headless, tuple(ignored))


def _singles(series: Any, names: Iterable[str]) -> list[bool]:
    import narwhals as nw

    return [series[name].dtype == nw.Float32 for name in names]


def _index(columns: Columns, x: np.ndarray) -> str | None:
    """The name of a first column that is the row numbers pandas writes, or reads back under a name of its own."""
    first = columns.columns[0]
    if first.categories is not None or len(columns.columns) < 2 or not UNNAMED.fullmatch(first.name):
        return None
    found = verdict(x[:, 0], first.name, range(len(x)), first=True)
    return first.name if found is not None and found.action == "leave" else None


def short(names: Iterable[str]) -> str:
    """Names in one line of a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def listed(names: Iterable[str]) -> str:
    """`column 'a'` or `columns 'a', 'b'`, in one line of a message."""
    names = list(names)
    return f"column{'s' * (len(names) > 1)} {short(map(repr, names))}"
