"""Calibration of class probabilities: the reliability diagram and the expected calibration error.

A classifier is calibrated when, among inputs that it gives confidence c, a share c is classified rightly. The expected
calibration error compares the two in bins of equal width (Naeini et al. 2015; Guo et al. 2017).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.core.errors import UserError

BINS = 15


class Reliability(NamedTuple):
    """A bin each: mean confidence, share right (both NaN in an empty bin) and number of rows."""

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    num: Int[Tensor, " bins"]

    @property
    def error(self) -> float:
        """sum over bins of count / n · |accuracy - confidence|, in [0, 1]."""
        gap = (self.accuracy - self.confidence).abs().nan_to_num()
        return float((gap * self.num).sum() / self.num.sum())


def reliability(probabilities: Float[Tensor, "n k"], labels: Int[Tensor, " n"], *, bins: int = BINS) -> Reliability:
    """The reliability of the top class over `bins` bins of equal width on [0, 1], right edges included.

    UserError unless there is a row or more and a label each.
    """
    if probabilities.ndim != 2 or not len(probabilities) or labels.shape != probabilities.shape[:1]:
        text = f"must be (N, K), N > 0, with labels (N,), not {tuple(probabilities.shape)} with {tuple(labels.shape)}"
        raise UserError(text, argument="probabilities")
    top, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = ((top * bins).ceil().long() - 1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    empty = top.new_zeros(bins)
    confidence, accuracy = (empty.index_add(0, place, v) / count for v in (top, right))
    return Reliability(confidence, accuracy, count)
