"""A joint energy E(x, y) as a classifier: p(y | x) = softmax of -E(x, y), calibrated, and samples of given classes.

The scores' temperature is fitted on held-out rows when a run ends (Guo et al. 2017) and kept in the model itself, so
that probabilities and energies stay one model.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from thalweg.core.errors import UserError
from thalweg.data.catalog import Dataset
from thalweg.energy.base import Classifier, lacking
from thalweg.energy.joint import GivenClass
from thalweg.energy.spectral import frozen
from thalweg.objective.base import Labelled

BLOCK = 250
RANGE = math.log(20)  # log beta in [-RANGE, RANGE]


def probabilities(bundle: Any, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b k"]:
    """p(label | x), (B, K), rows summing to 1; x in data units, checked by the bundle. UserError without classes."""
    if not bundle.num_classes:
        raise UserError(f"{bundle.path}: the model has no classes; train one on labelled data with --recipe jem")
    return _scores(bundle, x).softmax(1)


def first_labels(data: Dataset, n: int) -> Int[Tensor, " n"] | None:
    """The labels of the first n training rows; None where the data have none."""
    return None if data.train_labels is None else data.train_labels[:n]


def require_labels(objective: Any, energy: Any, data: Dataset) -> None:
    """UserError unless the data's labels are those of the energy's classes, if the objective learns any."""
    if not (isinstance(objective, Labelled) and objective.labelled):
        return
    if not isinstance(energy, Classifier):
        text = f"must have classes, which the objective learns; {lacking(energy, Classifier)}"
        raise UserError(text, argument="energy.type", hint="take thalweg.energy.joint:JointUNetEnergy")
    num = energy.num_classes
    if data.train_labels is None or data.held_out_labels is None:
        raise UserError(
            f"{data.name}: no labels of whole numbers, which the objective learns: give an npz with y_train, y or "
            "labels beside the rows, or train without classes by --recipe dual"
        )
    found = torch.cat([data.train_labels, data.held_out_labels]).unique()
    low, high = int(found[0]), int(found[-1])
    if low == high:
        raise UserError(f"{data.name}: all labels are {low}: a classifier wants two classes or more")
    if low < 0 or high >= num:
        raise UserError(
            f"{data.name}: labels run from {low} to {high}, and energy.num_classes={num} takes 0 to {num - 1}: "
            f"number the classes from 0, or add energy.num_classes={max(2, high + 1)}"
        )


def calibrate(bundle: Any, x: Tensor, labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Set the model's temperature to what gives held-out labels the highest probability; what it was, and how good.

    One virtual row of unknown label stands beside the n, so that a classifier that is right on all of them is finite.
    """
    from scipy.optimize import minimize_scalar

    with torch.no_grad():
        bundle.model.excess.zero_()
        scores = _scores(bundle, x).double()

        def surprise(log_beta: float) -> float:
            beta = math.exp(log_beta)
            return float(F.cross_entropy(beta * scores, labels, label_smoothing=1 / (1 + len(labels))))

        found = minimize_scalar(surprise, bounds=(-RANGE, RANGE), method="bounded", options={"xatol": 1e-4})
        beta = math.exp(found.x)  # pyright: ignore[reportAttributeAccessIssue]
        bundle.model.excess.fill_(beta - 1)
    return {
        "num_classes": bundle.num_classes,
        "temperature": round(1 / beta, 4),
        "held_out_accuracy": float((scores.argmax(1) == labels).double().mean()),
    }


def check_labels(bundle: Any, labels: Any, n: int) -> Int[Tensor, " n"]:
    """n labels in 0 … K - 1, from n whole numbers or one; UserError for anything else."""
    if not bundle.num_classes:
        why = "labels were given but this model is not conditional"
        raise UserError(f"{bundle.path}: {why}; train one with --recipe jem")
    try:
        given = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
        whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
    except (TypeError, ValueError):
        given, whole = torch.empty(0), False
    if not whole or given.ndim > 1 or (given.ndim == 1 and len(given) != n):
        raise UserError(f"labels: want {n} whole numbers, or one for all, got {_short(labels)}")
    given = given.long().expand(n) if given.ndim == 0 else given.long()
    outside = (given < 0) | (given >= bundle.num_classes)
    if bool(outside.any()):
        wrong = int(given[outside][0])
        raise UserError(f"labels: {wrong} is no class of this model, which has 0 to {bundle.num_classes - 1}")
    return given


def of_classes(model: nn.Module, labels: Int[Tensor, " n"], strength: float) -> Callable[[int, int], GivenClass]:
    """The energy of rows start … stop - 1, each of its own class; UserError for a strength that is not positive."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength < math.inf:
        raise UserError(f"strength={strength!r}: want a positive number; 1 is the law of the class")
    return lambda start, stop: GivenClass(model, labels[start:stop], float(strength))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def _scores(bundle: Any, x: Tensor) -> Float[Tensor, "n k"]:
    with frozen(bundle.model) as model:
        return torch.cat([model.logits(bundle.encode(part)) for part in x.split(BLOCK)])


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"an array of shape {tuple(shape)}" if shape is not None else " ".join(repr(value).split())[:60]
