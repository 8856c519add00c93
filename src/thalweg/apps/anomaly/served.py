"""A detector as a service or an export sees it."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.apps.anomaly.calibration import Calibration
from thalweg.apps.anomaly.explain import ImageReasons
from thalweg.bundle.exportable import Plan
from thalweg.bundle.servable import Content, TensorSpec
from thalweg.bundle.served import as_table, checked_alpha, require_inputs
from thalweg.data.columns.encoding import Columns
from thalweg.energy.base import HasShape

NO_GAPS = "the model was fitted without missing values; fit it with --missing marginalise"

if TYPE_CHECKING:
    from thalweg.apps.anomaly.saved import DetectorBundle


class ServedDetector:
    """The `Servable` of a detector of tables, of arrays or of images."""

    def __init__(self, bundle: "DetectorBundle"):
        self.bundle, self.detector, self.title = bundle, bundle.detector, bundle.title

    @property
    def content(self) -> Content:
        if self.detector.kind_ == "image":
            return "image"
        return "rows" if self.detector.columns_ is None else "table"

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        columns = self.detector.columns_
        if columns is not None:
            return [TensorSpec(c.name, "FP64" if c.categories is None else "BYTES", (-1,)) for c in columns.columns]
        return [TensorSpec("x", "FP32" if self.content == "image" else "FP64", (-1, *self._shape()))]

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return [
            TensorSpec("energy", "FP64", (-1,)),
            TensorSpec("p_value", "FP64", (-1,)),
            TensorSpec("flag", "BOOL", (-1,)),
        ]

    @property
    def columns(self) -> Columns | None:
        return self.detector.columns_

    @property
    def ignored(self) -> Collection[str]:
        columns = self.detector.columns_
        left_out = [] if columns is None else [name for name, _ in columns.left_out]
        return {*left_out, *self.bundle.about.get("ignored", ())}

    @property
    def why_no_gaps(self) -> str | None:
        return None if self.detector.missing_ == "marginalise" else NO_GAPS

    @property
    def flag_rate(self) -> float | None:
        return self.detector.rate_

    @property
    def calibration_energies(self) -> np.ndarray:
        return self.detector.calibration_.energies

    @property
    def calibration(self) -> Calibration:
        """How these energies came about, which a watch for drift must know."""
        return self.detector.calibration_

    def score(self, rows: Mapping[str, np.ndarray], *, alpha: Any = None) -> dict[str, np.ndarray]:
        require_inputs(self.inputs, rows)
        x = self._encoded(rows)
        u = self.detector.energy(self._frame(rows)) if x is None else self.detector.energy_of_encoded(x)
        p = self.detector.calibration_.p_values(u)
        return {"energy": u, "p_value": p, "flag": p <= checked_alpha(alpha, self.detector.rate_, len(p))}

    def explain(self, rows: Mapping[str, np.ndarray], *, top: int = 3) -> list[dict[str, Any]]:
        """Of a table `reasons`, the `top` features of each row; of images `map` (H, W) and `repaired` (C, H, W)."""
        require_inputs(self.inputs, rows)
        found = self.detector.explain(self._frame(rows), top=top)
        if isinstance(found, ImageReasons):
            both = zip(found.where, found.repaired, strict=True)
            return [{"map": np.asarray(where), "repaired": np.asarray(repaired)} for where, repaired in both]
        told: list[dict[str, Any]] = [{"reasons": []} for _ in range(found[-1].row + 1)]  # each row has one or more
        for reason in found:
            parts = {name: _plain(part) for name, part in reason._asdict().items() if name != "row"}
            told[reason.row]["reasons"].append(parts)
        return told

    def plan(self) -> Plan:
        from thalweg.apps.anomaly.graph.programs import plan_of

        return plan_of(self)

    def typical_rows(self, n: int, seed: int) -> dict[str, np.ndarray]:
        from thalweg.apps.anomaly.graph.programs import typical_rows

        return typical_rows(self.detector, n, seed)

    def encoded(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """The numbers (B, D) that the energy of a table takes."""
        columns = self.detector.columns_
        return np.asarray(rows["x"], float) if columns is None else columns.encode(as_table(rows))

    def _encoded(self, rows: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Rows of a table (B, D) without looking at a frame; None where there is anything to say of them."""
        columns = self.detector.columns_
        x = None if columns is None else columns.encode_arrays(rows)
        if x is None or np.isinf(x).any() or (self.why_no_gaps is not None and np.isnan(x).any()):
            return None
        return x

    def _frame(self, rows: Mapping[str, np.ndarray]) -> Any:
        return as_table(rows) if self.content == "table" else rows["x"]

    def _shape(self) -> tuple[int, ...]:
        energy = self.detector.energy_
        return tuple(energy.shape) if isinstance(energy, HasShape) else (self.detector.n_features_in_,)


def _plain(value: Any) -> Any:
    """A value of a frame as JSON has it: a missing number is None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and value != value else value
