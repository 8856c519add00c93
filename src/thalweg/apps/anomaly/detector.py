"""A detector in scikit-learn's manner: an energy of normal data, and thresholds that mean what they say.

    score_samples(x) = -E(x),    decision_function(x) = t - E(x),    predict(x) = -1 where E(x) > t,

t the threshold at a stated false-alarm rate (`apps.anomaly.calibration`), or, with `contamination` a number, the energy
that this share of the fitted rows exceeds. Either way a row is flagged where p(x) <= `rate_`, by every method.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from thalweg.apps.anomaly.calibration import Calibration, Rate, check_rate, q_values
from thalweg.apps.anomaly.drift import Drift, DriftAlarm, drift
from thalweg.apps.anomaly.duplicates.copied_rows import Copies, calibration_of_fitted, copies_of
from thalweg.apps.anomaly.explain import ImageReasons, Reason, ScoredBlock, by_feature, reasons
from thalweg.apps.anomaly.input_arrays import array_errors, check_rows, checked_pixels, numbered
from thalweg.apps.anomaly.missing import Partial
from thalweg.apps.anomaly.parameters import check_parameters, energy_of_kind, warn_of_few
from thalweg.apps.anomaly.tables.column_selection import Contents, describe, learn
from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.reading_options import IN_MEMORY, Reading
from thalweg.data.frames import as_frame, is_frame, names_of

MANY_GAPS = 0.5  # share of whole rows below which it is worth a warning
OUT_OF_REACH = 1e3  # ranges of the calibration's energies
log = logging.getLogger("thalweg")


class EnergyDetector(OutlierMixin, BaseEstimator):
    """Anomalies as rows of high energy. Tables (N, D) of numbers, frames with categories, or images.

    - `kind`: "table", or "image" for (N, H, W) or (N, C, H, W).
    - `contamination`: "auto" flags at `false_alarm_rate`; a number in (0, 0.5] flags that share of the fitted rows.
    - `false_alarm_rate`: the share of normal rows that may be flagged. Needs 1 / rate - 1 rows to calibrate with; with
      fewer none can be flagged, and the log says so.
    - `missing`: NaN is refused ("raise"), or a row is scored by what was observed of it ("marginalise"). Fitted rows
      with a gap are then left out, and calibration is by "split".
    - `calibration`: "unseen" uses all rows for the energy and calibrates with the energies that it gives them as if it
      had not seen them; "split" holds rows out, which makes the promise exact; "auto" is "unseen" where it can be.
    - `held_out`: the share of rows that "split" holds out. (Images: "unseen" has a share of its own, a tenth, of which
      one half calibrates; options={"held_out": 0.3} changes it.)
    - `options`: keywords of the energy behind it.
    - `random_state`: of the split and of the energy's fit.
    - `decimal`, `thousands`: how texts write numbers, as in pandas. Where one is given, a column of texts that all are
      such numbers is one of numbers; else texts are categories, and refused where most are numbers but for a mark.
    - `na_values`: the texts that mean a missing value, in place of the usual ones of a CSV (pandas adds to them); []
      for none but the empty one.
    - `dtype`: {name: "category"} for numbers that are codes, {name: "number"} for a measurement that looks like a
      counter or a time.

    After fit: `offset_` (= -t), `rate_` (the rate that t stands for), `calibration_`, `energy_`, `train_scores_` (N,):
    how strange each given row is, high = anomalous, for use without a clean training set (rows with a gap by what was
    observed of them); `n_features_in_`, `feature_names_in_`. Parameters set after fit count from the next fit on, and
    the two rates from the next `recalibrate` on.
    """

    def __init__(
        self,
        *,
        kind: str = "table",
        contamination: str | float = "auto",
        false_alarm_rate: float = 0.05,
        missing: str = "raise",
        calibration: str = "auto",
        held_out: float = 0.25,
        options: dict[str, Any] | None = None,
        random_state: Any = None,
        decimal: str = ".",
        thousands: str | None = None,
        na_values: str | Iterable[str] | None = None,
        dtype: Mapping[str, str] | None = None,
    ):
        self.kind = kind
        self.contamination = contamination
        self.false_alarm_rate = false_alarm_rate
        self.missing = missing
        self.calibration = calibration
        self.held_out = held_out
        self.options = options
        self.random_state = random_state
        self.decimal = decimal
        self.thousands = thousands
        self.na_values = na_values
        self.dtype = dtype

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the energy of normal rows and calibrate it; `y` is not looked at. UserError for what cannot be used."""
        check_parameters(self)
        self.kind_, self.missing_ = self.kind, self.missing
        x = self._input(X, reset=True)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        whole = self._whole_rows(x)
        copies = self._copies(x[whole])
        rows = x[whole][copies.kept]
        inside, outside = self._split(len(rows), random)
        energy = energy_of_kind(self.kind, self.options)
        warn_of_few(self, len(outside) or energy.num_calibrating(len(rows)), len(rows))
        spared = {"calibrates": False} if self.kind == "table" and len(outside) else {}
        self.energy_ = energy.fit(rows[inside], seed=seed, **spared)
        self.partial_ = None
        fitted = self.energy_.train_outlier_scores_
        if len(outside):
            held_out = np.asarray(self.energy_.energy(rows[outside]), float)
            self.calibration_ = Calibration.of_new_rows(held_out)
            scores = np.empty(len(rows))
            scores[inside] = self.energy_.calibration_energies_ if self.kind == "table" else fitted
            scores[outside] = held_out
            fitted = scores
        elif self.kind == "table":
            self.calibration_ = calibration_of_fitted(self.energy_, rows, copies)
        else:
            self.calibration_ = Calibration.of_new_rows(np.asarray(self.energy_.calibration_energies_, float))
        self._set_threshold(rows)
        fitted = np.asarray(fitted, float)[copies.counted_by]
        self.train_scores_ = fitted
        if self.missing == "marginalise":
            self.partial_ = Partial(rows[outside], self.calibration_, np.median(rows, axis=0))
            self.train_scores_ = np.empty(len(x))
            self.train_scores_[whole] = fitted
            if not whole.all():
                self.train_scores_[~whole] = self._energy_of(x[~whole])
        return self

    def energy(self, X: Any) -> np.ndarray:
        """E(x), (B,) nats, low = normal; of a row with gaps the energy at which a whole row would be as strange."""
        check_is_fitted(self)
        return self._energy_of(self._input(X, reset=False))

    def score_samples(self, X: Any) -> np.ndarray:
        """-E(x), (B,) nats, high = normal: a log-likelihood up to a constant."""
        return -self.energy(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """-E(x) - offset_, (B,): below 0 are the flagged rows; none is where too few rows calibrate for the rate."""
        d = self.score_samples(X) - self.offset_
        return d if self.calibration_.rank_of(self.rate_) else np.maximum(d, 0.0)

    def predict(self, X: Any) -> np.ndarray:
        """-1 for flagged rows, 1 for the others, (B,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        """The share of normal data at least as strange, (B,) in [1 / (n + 1), 1]; up to rate_: flagged."""
        u = self.energy(X)
        return self.calibration_.p_values(u)

    def q_values(self, X: Any) -> np.ndarray:
        """The lowest false discovery rate at which each row of this batch would be reported, (B,)."""
        return q_values(self.p_values(X))

    def explain(self, X: Any, *, top: int | None = None) -> list[Reason] | ImageReasons:
        """Why: the `top` features of each row by their share of its energy (None: all), with the value that was normal.

        Of images the map of pixels that raise the energy, and the repaired image.
        """
        check_is_fitted(self)
        if top is not None:
            check.whole("top", top, 1)
        x = self._input(X, reset=False)
        if self.kind_ == "image":
            return ImageReasons(self.energy_.attribution(x), self.energy_.repair(x))
        given = self.columns_.values(X) if self.columns_ is not None and is_frame(X) else None
        return self._explain(x, given, top)

    def score_block(
        self,
        frame: Any,
        *,
        alpha: float | None = None,
        top: int = 3,
        where: str = IN_MEMORY,
        first: int = 0,
        parse: bool = False,
    ) -> ScoredBlock:
        """All that is told of a block of a long table (pandas, polars, Arrow), whose columns are matched by name.

        Args:
            frame: The rows.
            alpha: Flags p-values up to this; `rate_` if not given.
            top: Reasons a flagged row.
            where: What an error calls the table.
            first: The number of the block's first row in the table, from 0, for errors.
            parse: Some words are missing values, as in a CSV.
        """
        check_is_fitted(self)
        columns = self.columns_for(names_of(frame), where)
        x = columns.encode(frame, where=where, first=first, parse=parse)
        check_rows(x, columns, where=where, first=first, gaps=self.missing_ == "marginalise")
        u = self._energy_of(x)
        rank = self.calibration_.at_least(u)
        p = (1 + rank) / (1 + len(self.calibration_.energies))
        flag = p <= (self.rate_ if alpha is None else check_rate(alpha, "alpha"))
        found: list[Reason] = []
        if len(flagged := np.flatnonzero(flag)):
            given = self.columns_ and columns.values(as_frame(frame, where)[flagged.tolist()])
            found = [r._replace(row=int(flagged[r.row])) for r in self._explain(x[flagged], given, top)]
        return ScoredBlock(u, rank, p, flag, found)

    def columns_for(self, names: Sequence[str], where: str = "X") -> Columns:
        """The columns of a table that the detector reads: those of the fit, or, where it was fitted on an array, x0,
        x1, … or 0, 1, …. UserError where a table with columns of these names has neither.
        """
        if self.columns_ is not None:
            return self.columns_
        return numbered(self.features()[0], names, where)

    def _explain(self, x: np.ndarray, given: list[list[Any]] | None, top: int | None) -> list[Reason]:
        """`explain` of encoded rows (B, D); `given`: their values as they came, by feature."""
        full = x if self.partial_ is None else self.partial_.filled(x)
        names, owners = self.features()
        fractions = by_feature(self.energy_.shares(full), owners, len(names), np.isnan(x))
        repaired = self.energy_.repair(full)
        if self.columns_ is None:
            values = [[None if v != v else v for v in row] for row in x.tolist()]
            return reasons(fractions, names, values, repaired.tolist(), top)
        values = self.columns_.decode(x) if given is None else given
        return reasons(fractions, names, values, self.columns_.decode(repaired), top)

    def realised_rate(self, *, level: float = 0.95) -> Rate:
        """What the threshold promises: the false-alarm rate expected, and an interval for it at this level."""
        check_is_fitted(self)
        return self.calibration_.rate(self.rate_, level=check_rate(level, "level"))

    def recalibrate(self, X: Any) -> Self:
        """Set p-values and threshold by fresh normal rows that no fit saw: exact after a drift. The energy stays."""
        check_is_fitted(self)
        check_parameters(self)
        x = self._input(X, reset=False)
        x = x[self._whole_rows(x)]
        x = x[self._copies(x).kept]
        warn_of_few(self, len(x), len(x))
        self.calibration_ = Calibration.of_new_rows(np.asarray(self.energy_.energy(x), float))
        self._set_threshold(x)
        if self.partial_ is not None:
            self.partial_ = Partial(x, self.calibration_, self.partial_.center)
        return self

    def drift(self, X: Any, *, level: float = 0.01) -> Drift:
        """Whether these rows, taken together, follow the law of the calibration; for one batch."""
        u = self.energy(X)
        return drift(self.calibration_, u, level=level)

    def drift_alarm(self, *, level: float = 0.01) -> DriftAlarm:
        """An alarm for batch after batch: `alarm.update(detector.energy(X))`."""
        check_is_fitted(self)
        return DriftAlarm(self.calibration_, level=level)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "marginalise"
        tags.input_tags.three_d_array = self.kind == "image"
        return tags

    @property
    def reading(self) -> Reading:
        """How a table to fit on is read. UserError for arguments that cannot be."""
        return Reading.of(self.decimal, self.thousands, self.na_values, self.dtype)

    def _input(self, X: Any, *, reset: bool) -> Any:
        """Rows (N, D) float64, checked, NaN only where it may be; images as they are."""
        if type(X).__name__ == "LazyFrame":
            raise UserError("X: a LazyFrame, whose rows are not there yet; give X.collect()")
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
                raise UserError("has no effect on an array, which holds numbers only", argument=self.reading.given)
        if self.columns_ is None or not is_frame(X):
            if self.columns_ is not None and len(self.columns_.owners) != len(self.columns_.columns):
                raise UserError("X: fitted on a table with categories; give a table with the same columns by name")
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
            raise UserError(f"{len(found.x)} rows; want {least} or more", argument=found.where)
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
            raise UserError(f"{whole.sum()} rows have no gap, want 2 or more", argument="X", hint=hint)
        if not whole.all():
            level = logging.WARNING if whole.mean() < MANY_GAPS else logging.INFO
            log.log(level, "%d of %d rows have a gap and are left out of the fit", (~whole).sum(), len(x))
        return whole

    def _copies(self, rows: Any) -> Copies:
        return copies_of(self.kind_, rows, None if self.columns_ is None else self.columns_.owners)

    def features(self) -> tuple[list[str], np.ndarray]:
        """Names by feature, and the feature of each encoded column."""
        if self.columns_ is not None:
            return self.columns_.names, self.columns_.owners
        return [f"x{i}" for i in range(self.n_features_in_)], np.arange(self.n_features_in_)

    def _split(self, n: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        how = "split" if self.missing == "marginalise" else self.calibration
        if how != "split":
            return np.arange(n), np.arange(0)
        order = random.permutation(n)
        held = min(n - 1, max(1, round(self.held_out * n)))
        return np.sort(order[held:]), np.sort(order[:held])

    def _energy_of(self, x: Any) -> np.ndarray:
        """`energy` of encoded rows (B, D)."""
        if self.partial_ is None or not np.isnan(x).any():
            return np.asarray(self.energy_.energy(x), float)
        return self.partial_.energy(self.energy_, x)

    def _set_threshold(self, rows: Any) -> None:
        """`offset_`, `rate_` and a calibration that agree: E(x) > t is p(x) <= rate_."""
        if self.contamination != "auto":
            self.offset_ = float(np.percentile(-self._energy_of(rows), 100 * float(self.contamination)))
            self.calibration_, self.rate_ = self.calibration_.through(-self.offset_)
            return
        self.rate_ = float(self.false_alarm_rate)
        self.offset_ = -self.calibration_.threshold(self.rate_)
        if not np.isfinite(self.offset_):
            u = self.calibration_.ranked  # finite, as scores are ranked by people's tools, which refuse infinity
            self.offset_ = -float(u[-1] + OUT_OF_REACH * (1 + u[-1] - u[0]))


def _images(x: Any) -> np.ndarray:
    """Images (N, C, H, W), checked by what is imported when they are wanted."""
    return import_module("thalweg.apps.anomaly.image.image_energy").as_images(x).numpy()


def _first(X: Any, names: list[str]) -> Any:
    """The frame with its columns in the order of the fit."""
    return X.select(names) if hasattr(X, "column_names") else X[names]  # Arrow selects, pandas and polars index
