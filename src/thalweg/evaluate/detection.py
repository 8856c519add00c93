"""Detection: how well an energy tells data from what is not data, by AUROC and by false positives at 95 %.

High energy = anomalous. Every row has the same figures for the distance to the nearest training row, a detector of one
line, and for chance (0.5): an easy pair of sets shows there.
"""

from collections.abc import Callable
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.errors import ThalwegError
from thalweg.energy.base import EnergyFn
from thalweg.energy.engine.freeze import frozen
from thalweg.evaluate.samples import nearest

Scores = Float[Tensor, " n"]


class DetectionRow(TypedDict):
    """One line of the detection table: areas under the ROC curve and false positives at 95 %, model and baseline."""

    out: str
    num_in: int
    num_out: int
    auroc: float
    fpr95: float
    nn_auroc: float
    nn_fpr95: float
    chance: float


def in_blocks(fn: Callable[[Tensor], Tensor], x: Tensor, *, block: int = 250, what: str = "the energy") -> Scores:
    """fn over blocks of rows, detached, float64, its modules in evaluation mode.

    A `ThalwegError` where a value is not finite.
    """
    with frozen(fn):
        u = torch.cat([fn(part).detach().double() for part in x.split(block)])
    bad = int((~u.isfinite()).sum())
    if bad:
        raise ThalwegError(f"{what} is not finite on {bad} of {len(u)} inputs: train longer, or check the inputs")
    return u


def auroc(inside: Scores, outside: Scores) -> float:
    """P(outside score > inside score), ties counted half: 0.5 is chance, 1 is perfect."""
    from sklearn.metrics import roc_auc_score

    labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    return float(roc_auc_score(labels.numpy(), torch.cat([inside, outside]).cpu().numpy()))


def fpr95(inside: Scores, outside: Scores) -> float:
    """Share of outside inputs that pass as data when the threshold lets 95 % of the data pass: 0.95 is
    chance, 0 is best.
    """
    return (outside <= inside.quantile(0.95)).double().mean().item()


def detection_table(
    energy: EnergyFn, in_x: Tensor, outs: dict[str, Tensor], train_x: Tensor, *, block: int = 250
) -> list[DetectionRow]:
    """One row for each set in `outs` against the data `in_x`, which no training saw; train_x serves the baseline."""
    u_in, d_in = in_blocks(energy, in_x, block=block), nearest(in_x, train_x)[0].double()
    rows: list[DetectionRow] = []
    for name, x in outs.items():
        u, d = in_blocks(energy, x, block=block), nearest(x, train_x)[0].double()
        rows.append(
            {
                "out": name,
                "num_in": len(u_in),
                "num_out": len(u),
                "auroc": auroc(u_in, u),
                "fpr95": fpr95(u_in, u),
                "nn_auroc": auroc(d_in, d),
                "nn_fpr95": fpr95(d_in, d),
                "chance": 0.5,
            }
        )
    return rows
