"""True and false as the values that a column of the fit had for them: 1 and 0, or its texts."""

from collections.abc import Mapping

import numpy as np

from thalweg.bundle.servable import TensorSpec
from thalweg.data.columns.column_reader import TRUTH, Column
from thalweg.serve.errors import unusable


def texts_of_true_and_false(holds: Column) -> Mapping[bool, str]:
    """The texts of true and false among a column's categories; none where it has neither, or two of one meaning.

    A text that the fit did not meet is written as the other one is, and is a new category.
    """
    categories = holds.categories or ()
    meant = {value: [text for text in categories if TRUTH.get(text.strip().lower()) == value] for value in (1, 0)}
    if max(map(len, meant.values())) != 1:
        return {}
    return {bool(value): texts[0] if texts else _other(meant[1 - value][0]) for value, texts in meant.items()}


def encode_truths(values: np.ndarray, holds: Column, spec: TensorSpec) -> np.ndarray:
    """Booleans as the column's numbers or texts; 422 for a column that has no values for true and false."""
    if holds.truth:
        return values.astype(np.float64)
    known = texts_of_true_and_false(holds)
    if not known:
        held = "numbers" if holds.categories is None else "texts"
        text = f"must be {spec.datatype}, not BOOL: the fit had {held} there, and none that mean true and false alone"
        raise unusable(text, spec.name)
    found = np.empty(values.shape, object)
    found[values], found[~values] = known[True], known[False]
    return found


def _other(text: str) -> str:
    """False for True, false for true, FALSE for TRUE, and the reverse."""
    other = "false" if TRUTH[text.strip().lower()] else "true"
    return other.upper() if text.isupper() else other if text.islower() else other.capitalize()
