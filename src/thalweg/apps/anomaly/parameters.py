"""The parameters of a detector, checked before a fit, and the energy that they name."""

import inspect
import logging
from importlib import import_module
from typing import Any

import numpy as np

from thalweg.apps.anomaly.calibration import check_rate
from thalweg.core import check
from thalweg.core.errors import UserError

KINDS = {
    "table": "thalweg.apps.anomaly.tabular.tabular_energy:TabularEnergy",
    "image": "thalweg.apps.anomaly.image.image_energy:ImageEnergy",
}
CHOICES = {"calibration": ("auto", "unseen", "split"), "missing": ("raise", "marginalise"), "kind": tuple(KINDS)}
log = logging.getLogger("thalweg")


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


def warn_of_few(detector: Any, n: int, rows: int) -> None:
    """Say, before anything is trained, that n of these rows are too few to flag any at the rate."""
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


def energy_of_kind(kind: str, options: dict[str, Any] | None) -> Any:
    """The energy with its options, none fitted; UserError for keywords that it does not have."""
    made = energy_class(kind)
    known = list(inspect.signature(made).parameters)
    if options is not None and not (isinstance(options, dict) and set(options) <= set(known)):
        raise UserError(f"must be a dict of keywords among {', '.join(known)}", argument="options", value=options)
    return made(**(options or {}))


def energy_class(kind: str) -> Any:
    """The energy of a kind of data, imported when it is wanted."""
    module, _, name = KINDS[kind].partition(":")
    return getattr(import_module(module), name)
