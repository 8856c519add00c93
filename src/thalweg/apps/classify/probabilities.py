"""A joint energy E(x, y) as a classifier: p(y | x) = softmax of -E(x, y), calibrated on held-out data."""

from jaxtyping import Float
from torch import Tensor

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.classes import require_classes, scores_of
from thalweg.bundle.inputs import require_numbers


def probabilities(bundle: Bundle, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b k"]:
    """p(label | x), (B, K), rows summing to 1; x in data units, checked by the bundle. UserError without classes."""
    require_numbers(bundle, "classes")
    require_classes(bundle)
    return scores_of(bundle, x).softmax(1)
