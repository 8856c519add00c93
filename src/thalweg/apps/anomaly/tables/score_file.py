"""Scores a table in a file, CSV or Parquet, block by block into a file of scores.

The table is read once. Each block's scores go to a nameless file beside the output, and the p-values are counted. They
take n + 1 values only, so that the counts give every row's q-value over the whole table, exactly, when the last block
is read. Then the output is written, and put in place when it is whole. Memory: one block, n counts and the detector.
"""

import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from thalweg.apps.anomaly.calibration import check_rate, q_by_rank
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.explain import ScoredBlock
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.core.atomic_write import whole_file
from thalweg.core.errors import UserError
from thalweg.core.store import write_errors
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.new_categories import count_new, told
from thalweg.data.csv_header import Known
from thalweg.data.score_table import writer
from thalweg.data.tables import Table, open_table

if TYPE_CHECKING:
    import pyarrow as pa

REASONS = 3
log = logging.getLogger("thalweg")


class Scored(NamedTuple):
    """What a scored table holds.

    Args:
        rows: Rows scored.
        flagged: Rows flagged by their p-value.
        discoveries: Rows that are flagged at a false discovery rate of the same size.
        least_discoveries: The fewest rows that can be: so many must have the least p-value that the calibration allows.
    """

    rows: int
    flagged: int
    discoveries: int
    least_discoveries: int


def score_file(
    bundle: DetectorBundle,
    path: Path,
    out: Path,
    *,
    alpha: float | None = None,
    drop: Sequence[str] = (),
    header: bool | None = None,
) -> Scored:
    """Score a table block by block into a CSV or Parquet file of one line a row, in order.

    row (from 1), energy (nats), p_value, q_value (over the whole table), flag = p_value <= alpha, and of flagged rows
    the three main reasons: feature_i, share_i, value_i, repair_i. `header` as in `Source`; a detector that was fitted
    on an array takes columns named x0, x1, … or 0, 1, …, as a table without header has them.
    """
    detector = bundle.detector
    require_tables(bundle)
    table = open_table(path, header=header, known=known_columns(bundle))
    alpha = detector.rate_ if alpha is None else check_rate(alpha, "alpha")
    table.require(drop)
    columns = matched(bundle, table.names, str(path), drop)
    if out.exists() and out.samefile(path):
        raise UserError("must be another file than the table", argument=str(out))
    if bundle.path is not None and out.resolve().is_relative_to(bundle.path.resolve()):
        raise UserError("must lie outside of the detector's folder", argument=str(out))
    with write_errors(out, None), tempfile.TemporaryFile(dir=out.parent) as spool:  # has no name, so nothing stays
        with table.naming_rows():
            counts = _score(detector, columns, table, alpha, spool)
        q = q_by_rank(counts)
        flagged = int(counts[: detector.calibration_.rank_of(alpha)].sum())
        with whole_file(out) as file:
            _finish(spool, q, file, out.suffix.lower())
    rows = int(counts.sum())
    return Scored(rows, flagged, int(counts[q <= alpha].sum()), least_discoveries(rows, alpha, len(counts)))


def least_discoveries(rows: int, alpha: float, levels: int) -> int:
    """The fewest rows k with k alpha / rows >= 1 / levels, the least p-value."""
    return max(1, int(np.ceil(rows / (alpha * levels) - 1e-9)))


def require_tables(bundle: DetectorBundle) -> None:
    """UserError for a detector of images."""
    if bundle.detector.kind != "table":
        raise UserError("must be a detector of tables", argument=str(bundle.path), hint="score images in Python")


def known_columns(bundle: DetectorBundle) -> Known:
    """What a detector knows of the first line of its tables."""
    columns = bundle.detector.columns_
    return Known(columns.names if columns is not None else [], bundle.about.get("header") is False)


def matched(bundle: DetectorBundle, names: Sequence[str], where: str, drop: Sequence[str]) -> Columns:
    """The columns of a table with these names that a detector reads; UserError where they are not those of the fit."""
    columns = bundle.detector.columns_for(names, where)
    fitted = [name for name in drop if name in columns.names]
    if fitted:
        raise UserError("must not name a column of the fit", argument="drop", value=fitted[0])
    ignore = {*bundle.about.get("ignored", ()), *drop}
    columns.match(names, where, ignore=ignore, mend="leave it out with --drop {name!r}")
    return columns


def _score(detector: EnergyDetector, columns: Columns, table: Table, alpha: float, spool: IO[bytes]) -> np.ndarray:
    """Write each block's scores to the spool; the number of rows by #{u_i >= E(x)}, (n + 1,)."""
    import pyarrow as pa

    where, first, new = str(table.path), 0, defaultdict[str, Counter[str]](Counter)
    counts = np.zeros(len(detector.calibration_.energies) + 1, np.int64)
    with pa.ipc.new_stream(spool, score_schema()) as stream:
        for frame in table.blocks(columns.names):
            block = detector.score_block(frame, alpha=alpha, top=REASONS, where=where, first=first, parse=table.is_text)
            np.add.at(counts, block.rank, 1)
            for name, found in count_new(columns, frame, where, parse=table.is_text).items():
                new[name] += found
            stream.write_table(pa.table(score_columns(block, first), schema=score_schema()))
            first += len(block.energy)
    if not first:
        raise UserError("must hold one row or more", argument=where)
    line = told(columns, new)
    if line is not None:
        log.warning("%s: %s", where, line)
    return counts


def _finish(spool: IO[bytes], q: np.ndarray, file: IO[bytes], suffix: str) -> None:
    """Copy the spool with the q-values that are known by now."""
    import pyarrow as pa

    spool.seek(0)
    out = writer(file, suffix, score_schema())
    for batch in pa.ipc.open_stream(spool):
        rank = np.rint(np.asarray(batch["p_value"]) * len(q)).astype(int) - 1
        block = pa.Table.from_batches([batch])
        out.write(block.set_column(3, "q_value", pa.array(q[rank])))
    out.close()


def score_schema() -> "pa.Schema":
    """The columns of a table of scores."""
    import pyarrow as pa

    fields = [("row", pa.int64()), ("energy", pa.float64()), ("p_value", pa.float64()), ("q_value", pa.float64())]
    fields.append(("flag", pa.bool_()))
    for i in range(1, REASONS + 1):
        fields += [(f"feature_{i}", pa.string()), (f"share_{i}", pa.float64())]
        fields += [(f"value_{i}", pa.string()), (f"repair_{i}", pa.string())]
    return pa.schema(fields)


def score_columns(block: ScoredBlock, first: int) -> dict[str, Any]:
    """A block as columns of the score table: no reasons where a row is not flagged, or has fewer features."""
    found: dict[str, Any] = {name: [None] * len(block.energy) for name in score_schema().names}
    found |= {"row": np.arange(first, first + len(block.energy)) + 1, "energy": block.energy}
    found |= {"p_value": block.p_value, "q_value": block.p_value, "flag": block.flag}  # q waits for the last block
    place, before = 0, -1
    for reason in block.reasons:
        place, before = place + 1 if reason.row == before else 1, reason.row
        found[f"feature_{place}"][reason.row] = reason.feature
        found[f"share_{place}"][reason.row] = reason.share
        found[f"value_{place}"][reason.row] = "" if reason.value is None else _short(reason.value)
        found[f"repair_{place}"][reason.row] = _short(reason.repair)
    return found


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
