"""What an answer says of categories that the model does not know, in the words of `thalweg detect score`."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from thalweg.data.columns.new_categories import told, unknown
from thalweg.serve.errors import shortened
from thalweg.serve.models import ServedModel


def warnings_of(model: ServedModel, rows: Mapping[str, np.ndarray]) -> list[str]:
    """A line where rows of a table have such categories, which are scored all the same; else none."""
    if model.columns is None or not model.has_categories:
        return []
    there = (column for column in model.columns.columns if column.categories is not None)
    new = {column.name: unknown(column, Counter(rows[column.name].tolist())) for column in there}
    line = told(model.columns, {name: counts for name, counts in new.items() if counts})
    return [] if line is None else [shortened(line)]  # of the client's own texts, a blank being part of them
