"""The table of a detector's scores: a row each, with its reasons."""

from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.apps.anomaly.explain import ScoredBlock
from thalweg.data.bad_rows import with_empty_rows
from thalweg.data.columns.number_formats import PLAIN, Writing

if TYPE_CHECKING:
    import pyarrow as pa

REASONS = 3


def q_column(p_value: Any, q: np.ndarray) -> "pa.Array":
    """The q-values of a column of p-values (1 + k) / len(q), by `q` of each k; empty where those are."""
    import pyarrow as pa

    p = p_value.to_numpy(zero_copy_only=False)
    empty = np.isnan(p)
    rank = np.rint(np.where(empty, 1.0, p) * len(q)).astype(int) - 1
    return pa.array(q[rank], mask=empty)


def score_table(block: ScoredBlock, first: int, good: np.ndarray, writing: Writing) -> "pa.Table":
    """The scores of rows first, first + 1, … of a table, of which those that are `good` (N,) were scored.

    `writing`: how the table's texts write numbers, and so the repairs beside them.
    """
    import pyarrow as pa

    found = with_empty_rows(pa.table(_columns(block, writing), schema=score_schema()), good)
    return found.set_column(0, "row", pa.array(np.arange(first, first + len(good)) + 1))


def score_schema() -> "pa.Schema":
    """The columns of a table of scores."""
    import pyarrow as pa

    fields = [("row", pa.int64()), ("energy", pa.float64()), ("p_value", pa.float64()), ("q_value", pa.float64())]
    fields.append(("flag", pa.bool_()))
    for i in range(1, REASONS + 1):
        fields += [(f"feature_{i}", pa.string()), (f"share_{i}", pa.float64())]
        fields += [(f"value_{i}", pa.string()), (f"repair_{i}", pa.string())]
    return pa.schema(fields)


def _columns(block: ScoredBlock, writing: Writing) -> dict[str, Any]:
    """A block as columns of the score table: no reasons where a row is not flagged, or has fewer features."""
    found: dict[str, Any] = {name: [None] * len(block.energy) for name in score_schema().names}
    found |= {"energy": block.energy, "p_value": block.p_value, "flag": block.flag}
    place, before = 0, -1
    for reason in block.reasons:
        place, before = place + 1 if reason.row == before else 1, reason.row
        found[f"feature_{place}"][reason.row] = reason.feature
        found[f"share_{place}"][reason.row] = reason.share
        given_as_text = reason.value is None or isinstance(reason.value, str)
        found[f"value_{place}"][reason.row] = "" if reason.value is None else _written(reason.value, PLAIN)
        found[f"repair_{place}"][reason.row] = _written(reason.repair, writing if given_as_text else PLAIN)
    return found


def _written(value: Any, writing: Writing) -> str:
    return f"{value:.6g}".replace(".", writing.decimal) if isinstance(value, float) else str(value)
