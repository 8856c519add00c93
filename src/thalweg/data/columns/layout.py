"""The columns of a model's rows, by which tables in files and in memory are read, and samples become tables.

A column of numbers is one number of a row, a column of K categories K of them (`data.columns.encoding`).

Columns are matched by name, in any order. Where one side has no names (an array, a CSV without a header) they are
matched by order, with a warning in the log.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import DamagedFile, UserError, suggestion
from thalweg.data.bad_rows import BadRows
from thalweg.data.columns.column_reader import Column
from thalweg.data.columns.contents import describe, learn
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.reading_options import Reading
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
        told: One line of what the columns held when they were learned.
    """

    columns: Columns | None = None
    headless: bool = False
    ignored: tuple[str, ...] = ()
    told: str | None = field(default=None, compare=False)

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
        headless: bool = False,
        parse: bool = False,
        ignored: Iterable[str] = (),
        dtype: Mapping[str, str] | None = None,
    ) -> tuple[Self, np.ndarray]:
        """Learn the columns of a frame by the rules of `data.columns.contents`; with the rows (N, D) float64.

        UserError: a column in doubt, whole numbers that float64 takes for one another, or numbers in float32 whose
        spread that hides.

        Args:
            frame: The table.
            where: What messages call it.
            headless: The names are none; then no column is left out.
            parse: Texts may be numbers, as in a CSV.
            ignored: Columns that were left out before.
            dtype: By name "number" or "category", where the values alone do not tell.
        """
        how: Any = {"where": where, "parse": parse, "offered": False, "named": not headless}
        contents = learn(frame, Reading.of(dtype=dtype), **how)
        columns, x = contents.columns, contents.x
        for name, why in columns.left_out:
            log.warning("%s: column %r is left out, as it %s", where, name, why)
        for note in contents.notes:
            log.warning("%s: %s", where, note)
        series, owners = as_frame(frame, where), columns.owners
        for i, column in enumerate(columns.columns):
            if column.categories is None:
                values = x[:, owners == i][:, 0]
                check_whole_numbers(values, series[column.name], f"column {column.name!r}", where)
                if _is_single(series, column):
                    check_single(values, f"column {column.name!r}", where)
        left_out = [name for name, _ in columns.left_out]
        return cls(columns, headless, (*ignored, *left_out), describe(contents.to_dict())), x

    @property
    def names(self) -> list[str] | None:
        """The names of the columns, where they have any."""
        return None if self.columns is None or self.headless else self.columns.names

    @property
    def owners(self) -> list[str] | None:
        """For each of the D numbers of a row the name of its column, where columns have any."""
        if self.columns is None or (self.headless and not self.categories):
            return None
        return [self.columns.names[i] for i in self.columns.owners]

    @property
    def categories(self) -> list[str]:
        """The names of the columns of categories."""
        return [column.name for column in self.columns.columns if column.categories is not None] if self.columns else []

    @property
    def truths(self) -> list[str]:
        """The names of the columns of true and false."""
        return [column.name for column in self.columns.columns if column.truth] if self.columns else []

    def require_numbers(self, where: str, hint: str) -> None:
        """UserError where a column holds categories."""
        if self.categories:
            raise UserError(f"not numbers in {listed(self.categories)}", argument=where, hint=hint)

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
        bad_rows: BadRows | None = None,
    ) -> np.ndarray:
        """(N, D) float64 in the order of the model, NaN where a value is missing. `headless`: the frame's names are
        none, so it is taken by order. `first`: the number of the first row, for messages. `bad_rows`: what becomes of
        rows with a text where numbers were. UserError: a missing or an unknown name, another number of columns, texts.
        """
        how: Any = {"where": where, "first": first, "parse": parse, "offered": False, "bad_rows": bad_rows}
        present = [name for name in names_of(frame) if name not in {*drop, *self.ignored}]
        if self.names is not None and not headless:
            self.check(names_of(frame), where, drop=drop)
            ignore = {*self.ignored, *drop}
            assert self.columns is not None  # as it has names
            return self.columns.encode(frame, ignore=ignore, **how)
        if self.columns is None:
            columns = _of_numbers(frame, where, first, parse, bad_rows)
        elif len(present) != len(self.columns.columns):
            condition = f"must have {len(self.columns.columns)} columns, as the model; it has {len(present)}"
            raise UserError(condition, argument=where)
        else:
            columns = self.columns_called(present)
        if self.names is not None:
            order = short(self.names)
            log.warning("%s: no names, so its columns are taken in the order of the model's: %s", where, order)
        elif not headless:
            order = short(present)
            log.warning("%s: the model knows no names, so the columns are taken in this order: %s", where, order)
        ignore = set(names_of(frame)) - set(present)
        return columns.encode(frame, ignore=ignore, **how)

    def columns_called(self, names: Sequence[str]) -> Columns:
        """The columns by the names that a table without names, or for a model without, has in their order."""
        assert self.columns is not None  # asked by the caller
        pairs = zip(self.columns.columns, names, strict=True)
        return replace(self.columns, columns=tuple(column._replace(name=name) for column, name in pairs))

    def singles(self, frame: Any) -> list[bool]:
        """Which of the D numbers of a row come in float32, in the model's order."""
        series = as_frame(frame, "x")
        if self.names is None or self.columns is None:
            return [_is_single(series, Column(name)) for name in names_of(frame) if name not in self.ignored]
        return [_is_single(series, self.columns.columns[i]) for i in self.columns.owners]

    def decode(self, x: Tensor) -> dict[str, list[Any]]:
        """Rows (B, D) as columns by name: numbers, True and False, and of categories the names of the nearest ones.

        Arrays have no names: they are x0, x1, … then.
        """
        if self.columns is None:
            return {f"x{i}": values.tolist() for i, values in enumerate(x.T)}
        columns = self.columns.columns
        values = [*zip(*self.columns.decode(x.double().numpy(force=True)), strict=True)] or [[] for _ in columns]
        names = self.names or [f"x{i}" for i in range(len(columns))]
        found = zip(names, columns, values, strict=True)
        return {name: [v > 0.5 for v in part] if column.truth else [*part] for name, column, part in found}

    @property
    def num_columns(self) -> int | None:
        """C, the columns of the table; None for arrays."""
        return None if self.columns is None else len(self.columns.columns)

    def widened(self, cells: Tensor) -> Tensor:
        """Marks of the columns of a table, (…, C), as marks of the numbers of a row, (…, D)."""
        return cells if self.columns is None else cells[..., torch.from_numpy(self.columns.owners).to(cells.device)]

    def of_marks(self) -> "Layout":
        """The columns of a table of marks beside one of these: the same names, numbers everywhere."""
        if self.columns is None:
            return self
        return Layout(Columns(tuple(Column(name) for name in self.columns.names)), self.headless, self.ignored)

    def with_last(self, names: Sequence[str], where: str) -> tuple[Self, list[int]]:
        """The same columns with these ones last, in the order given; with where each number of a row was before.

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
        texts = [name for name in names if name in self.categories]
        if texts:
            text, hint = f"must be columns of numbers, and {texts[0]!r} holds categories", "number its classes from 0"
            raise UserError(text, argument="data.targets", value=texts[0], hint=hint)
        order = [i for i, name in enumerate(self.names) if name not in names]
        order += [self.names.index(name) for name in names]
        columns = replace(self.columns, columns=tuple(self.columns.columns[i] for i in order))
        places = [np.flatnonzero(self.columns.owners == i) for i in order]
        return replace(self, columns=columns), np.concatenate(places).tolist()

    def to_list(self) -> list[list[Any]] | None:
        """What JSON holds of the columns."""
        return None if self.columns is None else self.columns.to_list()

    @classmethod
    def from_list(
        cls,
        stored: Any,
        *,
        headless: bool = False,
        ignored: Iterable[str] = (),
        dtype: Mapping[str, str] | None = None,
    ) -> Self:
        """The inverse of `to_list`; DamagedFile for anything else."""
        if not (stored is None or isinstance(stored, list)):
            raise DamagedFile("must be a list", argument="columns")
        reading = Reading.from_dict({"dtype": dtype})
        return cls(None if stored is None else Columns.from_list(stored, reading), headless, tuple(ignored))


def _is_single(series: Any, column: Column) -> bool:
    import narwhals as nw

    return column.categories is None and series[column.name].dtype == nw.Float32


def _of_numbers(frame: Any, where: str, first: int, parse: bool, bad_rows: BadRows | None) -> Columns:
    """The columns of a table for a model of arrays; UserError for texts, unless the rows with them are skipped."""
    rows = range(first, first + len(as_frame(frame, where)))
    try:
        columns = Columns.fit(frame, where=where, parse=parse, rows=rows)
        Layout(columns).require_numbers(where, "give numbers, as the model was trained on an array")
    except UserError as error:
        if bad_rows is None:
            raise
        if bad_rows.skip:
            return Columns(tuple(map(Column, names_of(frame))))
        raise error.replace(skippable=error.row is not None) from error
    return columns


def short(names: Iterable[str]) -> str:
    """Names in one line of a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def listed(names: Iterable[str]) -> str:
    """`column 'a'` or `columns 'a', 'b'`, in one line of a message."""
    names = list(names)
    return f"column{'s' * (len(names) > 1)} {short(map(repr, names))}"
