"""The classes of a joint energy E(x, y): its scores, their calibration, and energies of given classes.

The scores' temperature is fitted on held-out rows when a run ends (Guo et al. 2017) and kept in the model itself, so
that probabilities and energies stay one model.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Classifier, HasTemperature
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.wrappers import ClassifierGuidance

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

BLOCK = 250
RANGE = math.log(20)  # log beta in [-RANGE, RANGE]


def calibrate(bundle: "Bundle", x: Tensor, labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Set the model's temperature to what gives held-out labels the highest probability; what it was, and how good.

    One virtual row of unknown label stands beside the n, so that a classifier that is right on all of them is finite.
    """
    from scipy.optimize import minimize_scalar

    model = bundle.model
    with torch.no_grad():
        if isinstance(model, HasTemperature):
            model.inverse_temperature.fill_(1.0)
        scores = scores_of(bundle, x).double()

        def surprise(log_beta: float) -> float:
            beta = math.exp(log_beta)
            return float(F.cross_entropy(beta * scores, labels, label_smoothing=1 / (1 + len(labels))))

        beta = 1.0
        if isinstance(model, HasTemperature):
            found = minimize_scalar(surprise, bounds=(-RANGE, RANGE), method="bounded", options={"xatol": 1e-4})
            beta = math.exp(found.x)  # pyright: ignore[reportAttributeAccessIssue]
            model.inverse_temperature.fill_(beta)
    return {
        "num_classes": bundle.num_classes,
        "temperature": round(1 / beta, 4),
        "held_out_accuracy": float((scores.argmax(1) == labels).double().mean()),
    }


def check_labels(bundle: "Bundle", labels: Any, n: int) -> Int[Tensor, " n"]:
    """n labels in 0 … K - 1, from n whole numbers or one; UserError for anything else."""
    if not bundle.num_classes:
        found = "must be None for a model without classes"
        raise UserError(found, argument="labels", value=labels, hint="train a model with --recipe jem")
    try:
        given = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
        whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
    except (TypeError, ValueError):
        given, whole = torch.empty(0), False
    if not whole or given.ndim > 1 or (given.ndim == 1 and len(given) != n):
        raise UserError(f"must be {n} whole numbers, or one for all", argument="labels", value=labels)
    given = given.long().expand(n) if given.ndim == 0 else given.long()
    outside = (given < 0) | (given >= bundle.num_classes)
    if bool(outside.any()):
        wrong, last = int(given[outside][0]), bundle.num_classes - 1
        raise UserError(f"must be classes of the model, 0 to {last}", argument="labels", value=wrong)
    return given


def of_classes(
    model: nn.Module, labels: Int[Tensor, " n"], strength: float
) -> Callable[[int, int], ClassifierGuidance]:
    """The energy of rows start … stop - 1, each of its own class; UserError for a strength that is not positive."""
    check.positive(strength=strength)
    check.finite(strength=strength)
    return lambda start, stop: ClassifierGuidance(model, labels[start:stop], float(strength))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def scores_of(bundle: "Bundle", x: Tensor) -> Float[Tensor, "n k"]:
    """The calibrated scores (N, K) whose softmax is p(label | x); x in data units."""
    with frozen(bundle.model) as model:
        assert isinstance(model, Classifier)  # asked for by whoever calls
        return torch.cat([model.logits(bundle.encode(part)) for part in x.split(BLOCK)])
