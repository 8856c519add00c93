"""What a detector is given, checked and turned into rows of numbers or images, and the columns that it learns."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from thalweg.apps.anomaly.input_arrays import array_errors, check_rows, checked_pixels, numbered
from thalweg.core.errors import UserError
from thalweg.data.columns.contents import Contents, describe, learn
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.reading_options import Reading
from thalweg.data.frames import is_frame

MANY_GAPS = 0.5  # share of whole rows below which it is worth a warning
log = logging.getLogger("thalweg")


class DetectorInput(BaseEstimator):
    """Abstract: the input of a detector. `kind_` and `missing_` are of the fit, `columns_` those of a fitted frame."""

    kind_: str
    missing_: str
    columns_: Columns | None  # None: fitted on an array
    decimal: str
    thousands: str | None
    na_values: str | Iterable[str] | None
    dtype: Mapping[str, str] | None

    @property
    def reading(self) -> Reading:
        """How a table to fit on is read. UserError for arguments that cannot be."""
        return Reading.of(self.decimal, self.thousands, self.na_values, self.dtype)

    def features(self) -> tuple[list[str], np.ndarray]:
        """Names by feature, and the feature of each encoded column."""
        if self.columns_ is not None:
            return self.columns_.names, self.columns_.owners
        return [f"x{i}" for i in range(self.n_features_in_)], np.arange(self.n_features_in_)

    def columns_for(self, names: Sequence[str], where: str = "X") -> Columns:
        """The columns of a table that the detector reads: those of the fit, or, where it was fitted on an array, x0,
        x1, … or 0, 1, …. UserError where a table with columns of these names has neither.
        """
        if self.columns_ is not None:
            return self.columns_
        return numbered(self.features()[0], names, where)

    def _input(self, X: Any, *, reset: bool) -> Any:
        """Rows (N, D) float64, checked, NaN only where it may be; images as they are; on the CPU."""
        X = X.detach().cpu() if isinstance(X, Tensor) else X
        if type(X).__name__ == "LazyFrame":
            raise UserError("must be a frame, not a LazyFrame", argument="X", hint="give X.collect()")
        if self.kind_ == "image":
            if reset:
                self.columns_ = None
            return checked_pixels(X)
        least = 2 if reset else 1
        if reset:
            self.columns_ = None
            if isinstance(X, Contents) or is_frame(X):
                return self._learn(X, least)
            if self.reading.given:
                raise UserError("must be left out for an array, which holds numbers only", argument=self.reading.given)
        if self.columns_ is None or not is_frame(X):
            if self.columns_ is not None and len(self.columns_.owners) != len(self.columns_.columns):
                raise UserError(
                    "must be a table with the columns of the fit by name, as some are categories", argument="X"
                )
            with array_errors(X):
                x: Any = validate_data(
                    self, X, reset=reset, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=least
                )
            check_rows(x, self.columns_, gaps=self.missing_ == "marginalise")
            return x
        x = self.columns_.encode(X)
        check_rows(x, self.columns_, gaps=self.missing_ == "marginalise", least=least)
        validate_data(self, _first(X, self.columns_.names), reset=False, skip_check_array=True)
        return x

    def _learn(self, X: Any, least: int) -> np.ndarray:
        """The rows of a frame, whose columns are learned, or of a file, whose contents are known."""
        found = X if isinstance(X, Contents) else learn(X, self.reading)
        self.columns_ = found.columns
        if X is not found:
            log.log(logging.WARNING if found.columns.left_out else logging.INFO, "%s", describe(found.to_dict()))
        for note in found.notes:
            log.warning("%s", note)
        found.check(gaps=self.missing_ == "marginalise")
        if len(found.x) < least:
            raise UserError(f"must hold {least} rows or more, and holds {len(found.x)}", argument=found.where)
        self.n_features_in_ = len(found.columns.names)
        self.feature_names_in_ = np.array(found.columns.names, dtype=object)
        return found.x

    def _whole_rows(self, x: Any) -> np.ndarray:
        """Which rows are without a gap, (N,) bool; there must be two."""
        if self.missing_ != "marginalise":
            return np.ones(len(x), dtype=bool)
        gaps = np.isnan(x)
        whole = ~gaps.any(1)
        if whole.sum() < 2:
            names, owners = self.features()
            worst = names[owners[gaps.mean(0).argmax()]]
            hint = f"drop columns with many gaps, {worst!r} first"
            raise UserError(f"must hold 2 rows or more without a gap, and holds {whole.sum()}", argument="X", hint=hint)
        if not whole.all():
            level = logging.WARNING if whole.mean() < MANY_GAPS else logging.INFO
            log.log(level, "%d of %d rows have a gap and are left out of the fit", (~whole).sum(), len(x))
        return whole


def _first(X: Any, names: list[str]) -> Any:
    """The frame with its columns in the order of the fit."""
    return X.select(names) if hasattr(X, "column_names") else X[names]  # Arrow selects, pandas and polars index
