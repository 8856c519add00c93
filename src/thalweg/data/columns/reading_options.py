"""A user's options for reading the values of a table: pandas' `decimal`, `thousands`, `na_values` and `dtype`."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from thalweg.core import check
from thalweg.core.errors import DamagedFile, UserError, kind_of
from thalweg.data.columns.number_formats import PLAIN, Writing

NA_WORDS = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None", "<NA>")  # of a CSV; an empty value is always missing
KINDS = ("number", "category")
IN_MEMORY = "X"  # what messages call a table that is no file


@dataclass(frozen=True)
class Reading:
    """The options for reading values, the same in the fit and in the score.

    Args:
        writing: How texts write numbers.
        na_values: The texts that mean a missing value, beside the empty one; None: `NA_WORDS` in a CSV, none elsewhere.
        dtype: By the names of columns, "number" or "category", where the values alone would not tell.
    """

    writing: Writing = PLAIN
    na_values: tuple[str, ...] | None = None
    dtype: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        decimal: str = ".",
        thousands: str | None = None,
        na_values: str | Iterable[str] | None = None,
        dtype: Mapping[str, str] | None = None,
    ) -> Self:
        """The reading that a user's arguments name; UserError for what they cannot be."""
        words = None if na_values is None else _words(na_values)
        if dtype is not None and not isinstance(dtype, Mapping):
            example = f"as in {{name: {KINDS[0]!r}}}"
            raise UserError("must map names of columns to kinds", argument="dtype", value=dtype, hint=example)
        for name, kind in (dtype or {}).items():
            check.one_of(KINDS, **{f"dtype[{name!r}]": kind})
        return cls(Writing(decimal, thousands), words, dict(dtype or {}))

    def words(self, csv: bool) -> frozenset[str]:
        """The texts that mean a missing value."""
        found = self.na_values if self.na_values is not None else (NA_WORDS if csv else None)
        return frozenset() if found is None else frozenset({"", *found})

    @property
    def given(self) -> str | None:
        """The first argument that is not the usual one; None where all are."""
        usual = Reading().to_dict()
        return next((name for name, value in self.to_dict().items() if value != usual[name]), None)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of `of`, as JSON holds them."""
        words = None if self.na_values is None else list(self.na_values)
        writing = {"decimal": self.writing.decimal, "thousands": self.writing.thousands}
        return {**writing, "na_values": words, "dtype": dict(self.dtype)}

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """The inverse of `to_dict`; DamagedFile for anything else."""
        try:
            return cls.of(**stored)
        except (TypeError, ValueError) as error:
            raise DamagedFile("must be options as to_dict writes them", argument="reading") from error


def _words(na_values: Any) -> tuple[str, ...]:
    """The texts of `na_values`, each once."""
    words: list[Any] = list(na_values) if isinstance(na_values, list | tuple | set | frozenset) else [na_values]
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"must be texts, not {kind_of(word)}", argument="na_values", value=na_values)
    return tuple(dict.fromkeys(words))


def option(where: str, name: str, *values: Any) -> str:
    """How to give an argument: `--na-values missing` for a file, `na_values=['missing']` in memory."""
    if where != IN_MEMORY:
        words = [f"{k}={v}" for value in values for k, v in value.items()] if name == "dtype" else values
        return " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(word))}" for word in words)
    value = list(values) if name == "na_values" else values[0]
    return f"{name}={value!r}"
