"""A joint energy E(x, y) as a classifier: p(y | x) = softmax of -E(x, y), calibrated on held-out data."""

from jaxtyping import Float
from torch import Tensor

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.classes import scores_of
from thalweg.bundle.inputs import require_numbers
from thalweg.core.errors import UserError


def probabilities(bundle: Bundle, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b k"]:
    """p(label | x), (B, K), rows summing to 1; x in data units, checked by the bundle. UserError without classes."""
    require_numbers(bundle, "classes")
    if not bundle.num_classes:
        hint = "train one on labelled data with --recipe jem"
        raise UserError("the model has no classes", argument=str(bundle.path), hint=hint)
    return scores_of(bundle, x).softmax(1)
