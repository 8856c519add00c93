"""The parameters of a detector, checked before a fit."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from thalweg.apps.anomaly.calibration import check_rate
from thalweg.apps.anomaly.energies import KINDS
from thalweg.core import check
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from thalweg.apps.anomaly.detector import EnergyDetector

log = logging.getLogger("thalweg")


def check_parameters(detector: "EnergyDetector") -> None:
    """UserError for a parameter of an `EnergyDetector` that cannot be."""
    check.one_of(("auto", "unseen", "split"), calibration=detector.calibration)
    check.one_of(("raise", "marginalise"), missing=detector.missing)
    check.one_of(KINDS, kind=detector.kind)
    if detector.kind == "image" and detector.reading.given:
        raise UserError("must be left out for images", argument=detector.reading.given)
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


def warn_of_few(detector: "EnergyDetector", n: int, rows: int) -> None:
    """Log, before anything is trained, that n of these rows are too few to flag any at the rate."""
    rate = float(detector.false_alarm_rate)
    least = int(np.ceil(1 / rate - 1 - 1e-9))
    if detector.contamination != "auto" or n >= least:
        return
    more = f"{least}" if n == rows else f"{least} ({int(np.ceil(least * rows / max(n, 1)))} in all)"
    if detector.kind_ == "image":
        more += ", hold out a larger share (calibration='split', held_out)"
    log.warning(
        "%d rows to calibrate with: none can be flagged at a false-alarm rate of %g; give %s, or a higher rate",
        n, rate, more,
    )  # fmt: skip
