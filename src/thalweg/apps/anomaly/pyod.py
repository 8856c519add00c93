"""The detector among PyOD's: high = abnormal, labels 0 and 1, and a training set that may be contaminated.

`decision_scores_` are the fitted rows' `train_scores_`, `threshold_` and `labels_` PyOD's own at `contamination`, and
`predict_proba`, `predict_confidence` and PyOD's ensembles (LSCP, FeatureBagging, SUOD) and combinations go on from
there. Needs `pip install 'thalweg[pyod]'`: combo comes along, without which PyOD 3.6 has neither combinations nor
feature bagging.
"""

from typing import Any, Self

import numpy as np
from sklearn.utils import check_array

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.core.errors import UserError

try:
    from pyod.models.base import BaseDetector
except ImportError as error:
    raise UserError("must be installed", argument="pyod", hint="pip install 'thalweg[pyod]'") from error


class EnergyOD(BaseDetector):
    """`EnergyDetector` behind PyOD's interface; `contamination` in (0, 0.5], the other keywords as there."""

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        calibration: str = "auto",
        held_out: float = 0.25,
        options: dict[str, Any] | None = None,
        random_state: Any = None,
        device: Any = "auto",
    ):
        super().__init__(contamination=contamination)
        self.calibration = calibration
        self.held_out = held_out
        self.options = options
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fit on rows (N, D) of which a share `contamination` may be anomalous; `y` is not looked at."""
        X = check_array(X, dtype="float64")
        self._set_n_classes(y)
        self.detector_ = EnergyDetector(
            calibration=self.calibration,
            held_out=self.held_out,
            options=self.options,
            random_state=self.random_state,
            device=self.device,
        ).fit(X)
        self.decision_scores_ = np.asarray(self.detector_.train_scores_, float)
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """E(x), (B,) nats, high = abnormal."""
        if "detector_" not in vars(self):
            raise UserError("must be fitted", argument="EnergyOD", hint="call fit")
        return self.detector_.energy(X)
