"""A detector in scikit-learn's manner: an energy of normal data, and thresholds that mean what they say.

    score_samples(x) = -E(x),    decision_function(x) = t - E(x),    predict(x) = -1 where E(x) > t,

t the threshold at a stated false-alarm rate (`apps.anomaly.calibration`), or, with `contamination` a number, the energy
that this share of the fitted rows exceeds. Either way a row is flagged where p(x) <= `rate_`, by every method.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from thalweg.apps.anomaly.calibration import Calibration, Rate, check_rate, q_values
from thalweg.apps.anomaly.detector_input import DetectorInput
from thalweg.apps.anomaly.drift import Drift, DriftAlarm, drift
from thalweg.apps.anomaly.duplicates.copied_rows import Copies, calibration_of_fitted, copies_of
from thalweg.apps.anomaly.energies import DetectorEnergy, HasAttribution, HasMarginals, new_energy
from thalweg.apps.anomaly.explain import ImageReasons, Reason, ScoredBlock, by_feature, reasons
from thalweg.apps.anomaly.input_arrays import check_rows
from thalweg.apps.anomaly.missing import PartialRows
from thalweg.apps.anomaly.parameters import check_parameters, warn_of_few
from thalweg.bundle import conformal
from thalweg.core import check
from thalweg.core.device import find_device
from thalweg.data.bad_rows import BadRows
from thalweg.data.columns.reading_options import IN_MEMORY
from thalweg.data.frames import as_frame, is_frame, names_of

OUT_OF_REACH = 1e3  # ranges of the calibration's energies
log = logging.getLogger("thalweg")


class EnergyDetector(OutlierMixin, DetectorInput):
    """Anomalies as rows of high energy. Tables (N, D) of numbers, frames with categories, or images.

    Parameters set after fit count from the next fit on, and the two rates from the next `recalibrate` on.

    Args:
        kind: "table", or "image" for (N, H, W) or (N, C, H, W).
        contamination: "auto" flags at `false_alarm_rate`; a number in (0, 0.5] flags that share of the fitted rows.
        false_alarm_rate: The share of normal rows that may be flagged. Needs 1 / rate - 1 rows to calibrate with; with
            fewer none can be flagged, and the log says so.
        missing: NaN is refused ("raise"), or a row is scored by what was observed of it ("marginalise"). Fitted rows
            with a gap are then left out, and calibration is by "split".
        calibration: "unseen" uses all rows for the energy, and calibrates with their energies as if it had not seen
            them; "split" holds rows out, which makes the rate exact; "auto" is "unseen" where it can be.
        held_out: The share of rows that "split" holds out. (Images: "unseen" has a share of its own, a tenth, of which
            one half calibrates; options={"held_out": 0.3} changes it.)
        options: Keywords of the energy behind it.
        random_state: Of the split and of the energy's fit.
        decimal: The decimal point of texts that are numbers, as in pandas. Where this or `thousands` is given, a column
            of such texts is one of numbers; else texts are categories, and refused where most are numbers.
        thousands: Their separator of thousands.
        na_values: The texts that mean a missing value, in place of the usual ones of a CSV (pandas adds to them); []
            for none but the empty one.
        device: Where energies are computed: "auto" (THALWEG_DEVICE, else a GPU, else the CPU), "cpu", "cuda" or
            "cuda:N". Scikit-learn fits mixtures and looks for near-copies on the CPU.
        dtype: {name: "category"} for numbers that are codes, {name: "number"} for a measurement that looks like a
            counter or a time.

    Attributes:
        offset_: -t, nats.
        rate_: The false-alarm rate that t stands for.
        calibration_: The energies of normal rows behind p-values and threshold.
        energy_: The fitted energy.
        train_scores_: How strange each given row is, high = anomalous, (N,): for use without a clean training set.
        n_features_in_, feature_names_in_: As in scikit-learn.
    """

    energy_: DetectorEnergy
    partial_: PartialRows | None

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
        device: Any = "auto",
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
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the energy of normal rows and calibrate it; `y` is not looked at. UserError for what cannot be used."""
        check_parameters(self)
        device = find_device(self.device)
        self.kind_, self.missing_ = self.kind, self.missing
        x = self._input(X, reset=True)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        whole = self._whole_rows(x)
        copies = self._copies(x[whole])
        rows = x[whole][copies.kept]
        inside, outside = self._split(len(rows), random)
        energy = new_energy(self.kind, self.options).to(device)
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
            self.partial_ = PartialRows(rows[outside], self.calibration_, np.median(rows, axis=0))
            self.train_scores_ = np.empty(len(x))
            self.train_scores_[whole] = fitted
            if not whole.all():
                self.train_scores_[~whole] = self.energy_of_encoded(x[~whole])
        return self

    def to(self, device: Any) -> Self:
        """The fitted detector itself, whose energies are computed on a device from now on; `device` is for a fit."""
        check_is_fitted(self)
        self.energy_.to(find_device(device))
        return self

    def energy(self, X: Any) -> np.ndarray:
        """E(x), (B,) nats, low = normal; of a row with gaps the energy at which a whole row would be as strange."""
        check_is_fitted(self)
        return self.energy_of_encoded(self._input(X, reset=False))

    def energy_of_encoded(self, x: Any) -> np.ndarray:
        """`energy` of rows (B, D) as `columns_` encodes them, which were checked, or of an array."""
        if self.partial_ is None or not isinstance(self.energy_, HasMarginals) or not np.isnan(x).any():
            return np.asarray(self.energy_.energy(x), float)
        return self.partial_.energies(self.energy_.energy, self.energy_.marginal, x)

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
        if isinstance(self.energy_, HasAttribution):
            return ImageReasons(self.energy_.attribution(x), self.energy_.repair(x))
        shown = self.columns_.values(X) if self.columns_ is not None and is_frame(X) else None
        return self._explain(x, shown, top)

    def score_block(
        self,
        frame: Any,
        *,
        alpha: float | None = None,
        top: int = 3,
        where: str = IN_MEMORY,
        first: int = 0,
        parse: bool = False,
        bad_rows: BadRows | None = None,
    ) -> ScoredBlock:
        """Scores and reasons of a block of a long table (pandas, polars, Arrow), whose columns are matched by name.

        Args:
            frame: The rows.
            alpha: Flags p-values up to this; `rate_` if not given.
            top: Reasons a flagged row.
            where: What an error calls the table.
            first: The number of the block's first row in the table, from 0, for errors.
            parse: Some words are missing values, as in a CSV.
            bad_rows: What becomes of rows that cannot be scored; None: the first is an error. Those that are kept apart
                are no rows of the result.
        """
        check_is_fitted(self)
        columns = self.columns_for(names_of(frame), where)
        x = columns.encode(frame, where=where, first=first, parse=parse, bad_rows=bad_rows)
        check_rows(x, columns, where=where, first=first, gaps=self.missing_ == "marginalise", bad_rows=bad_rows)
        if bad_rows is not None and not (good := bad_rows.usable(first, len(x))).all():
            frame, x = as_frame(frame, where)[np.flatnonzero(good).tolist()], x[good]
            if not len(x):
                return ScoredBlock(np.zeros(0), np.zeros(0, int), np.zeros(0), np.zeros(0, bool), [])
        u = self.energy_of_encoded(x)
        rank = self.calibration_.at_least(u)
        p = conformal.p_of_ranks(rank, len(self.calibration_.energies))
        flag = p <= (self.rate_ if alpha is None else check_rate(alpha, "alpha"))
        found: list[Reason] = []
        if len(flagged := np.flatnonzero(flag)):
            shown = self.columns_ and columns.values(as_frame(frame, where)[flagged.tolist()])
            found = [r._replace(row=int(flagged[r.row])) for r in self._explain(x[flagged], shown, top)]
        return ScoredBlock(u, rank, p, flag, found)

    def _explain(self, x: np.ndarray, shown: list[list[Any]] | None, top: int | None) -> list[Reason]:
        """`explain` of encoded rows (B, D); `shown`: their values as they came, by feature."""
        assert isinstance(self.energy_, HasMarginals)
        full = x if self.partial_ is None else self.partial_.filled(x)
        names, owners = self.features()
        fractions = by_feature(self.energy_.shares(full), owners, len(names), np.isnan(x))
        repaired = self.energy_.repair(full)
        if self.columns_ is None:
            values = [[None if v != v else v for v in row] for row in x.tolist()]
            return reasons(fractions, names, values, repaired.tolist(), top)
        values = self.columns_.decode(x) if shown is None else shown
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
            self.partial_ = PartialRows(x, self.calibration_, self.partial_.center)
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
        return "offset_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "marginalise"
        tags.input_tags.three_d_array = self.kind == "image"
        return tags

    def _copies(self, rows: Any) -> Copies:
        return copies_of(self.kind_, rows, None if self.columns_ is None else self.columns_.owners)

    def _split(self, n: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """The rows that the energy is fitted to, and those that are held out."""
        if self.missing != "marginalise" and self.calibration != "split":
            return np.arange(n), np.arange(0)
        order, num = random.permutation(n), min(n - 1, max(1, round(self.held_out * n)))
        return np.sort(order[num:]), np.sort(order[:num])

    def _set_threshold(self, rows: Any) -> None:
        """`offset_`, `rate_` and a calibration that agree: E(x) > t is p(x) <= rate_."""
        if self.contamination != "auto":
            self.offset_ = float(np.percentile(-self.energy_of_encoded(rows), 100 * float(self.contamination)))
            self.calibration_, self.rate_ = self.calibration_.through(-self.offset_)
            return
        self.rate_ = float(self.false_alarm_rate)
        self.offset_ = -self.calibration_.threshold(self.rate_)
        if not np.isfinite(self.offset_):
            u = self.calibration_.ranked  # a finite offset, as tools that rank scores refuse infinity
            self.offset_ = -float(u[-1] + OUT_OF_REACH * (1 + u[-1] - u[0]))
