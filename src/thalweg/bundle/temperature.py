"""Temperature calibration of class probabilities on held-out rows, when a run ends (Guo et al. 2017).

The temperature is kept in the model itself, so that probabilities and energies stay one model.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from thalweg.bundle.classes import scores_of
from thalweg.energy.base import HasTemperature

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

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
