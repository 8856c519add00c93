"""The parameters of a detector, checked before a fit."""

from typing import Any

import numpy as np

from thalweg.apps.anomaly.calibrate import check_rate
from thalweg.core import check
from thalweg.core.errors import UserError

KINDS = {"table": "thalweg.apps.anomaly.energies:TabularEnergy", "image": "thalweg.apps.anomaly.images:ImageEnergy"}
CHOICES = {"calibration": ("auto", "unseen", "split"), "missing": ("raise", "marginalise"), "kind": tuple(KINDS)}


def check_parameters(detector: Any) -> None:
    """UserError for a parameter of an `EnergyDetector` that cannot be."""
    for name, choices in CHOICES.items():
        check.one_of(choices, **{name: getattr(detector, name)})
    if detector.kind == "image" and detector.reading.given:
        raise UserError("has no effect on images", argument=detector.reading.given)
    c = detector.contamination
    number = isinstance(c, int | float | np.number) and not isinstance(c, bool)
    if c != "auto" and not (number and 0 < float(c) <= 0.5):
        raise UserError("must be 'auto' or a number in (0, 0.5]", argument="contamination", value=c)
    check_rate(detector.false_alarm_rate)
    if not isinstance(detector.held_out, int | float | np.number) or not 0 < detector.held_out < 1:
        raise UserError("must be a number between 0 and 1", argument="held_out", value=detector.held_out)
    if detector.missing == "marginalise" and (detector.calibration == "unseen" or detector.kind == "image"):
        want = "must be 'raise' unless kind='table' and calibration='split' or 'auto'"
        raise UserError(want, argument="missing", value=detector.missing)
