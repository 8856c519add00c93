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
from typing import IO, Any, NamedTuple

import numpy as np

from thalweg.apps.anomaly.calibration import check_rate, q_by_rank
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tables.score_columns import REASONS, q_column, score_schema, score_table
from thalweg.core.atomic_write import whole_file
from thalweg.core.errors import UserError
from thalweg.core.store import write_errors
from thalweg.data.bad_rows import BadRows, LeftOutRows
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.new_categories import count_new, told
from thalweg.data.csv_header import Known
from thalweg.data.image_files import LeftOut
from thalweg.data.score_table import writer
from thalweg.data.tables import Table, open_table

log = logging.getLogger("thalweg")


class Scored(NamedTuple):
    """What a scored table holds.

    Args:
        rows: Rows of the table.
        flagged: Rows flagged by their p-value.
        discoveries: Rows that are flagged at a false discovery rate of the same size.
        least_discoveries: The fewest rows that can be: so many must have the least p-value that the calibration allows.
        num_left_out: Rows without a score.
        left_out: The first `NAMED` of them.
    """

    rows: int
    flagged: int
    discoveries: int
    least_discoveries: int
    num_left_out: int = 0
    left_out: tuple[LeftOut, ...] = ()


def score_file(
    bundle: DetectorBundle,
    path: Path,
    out: Path,
    *,
    alpha: float | None = None,
    drop: Sequence[str] = (),
    header: bool | None = None,
    skip_bad: bool = False,
) -> Scored:
    """Score a table block by block into a CSV or Parquet file of one line a row, in order.

    row (from 1), energy (nats), p_value, q_value (over the whole table), flag = p_value <= alpha, and of flagged rows
    the three main reasons: feature_i, share_i, value_i, repair_i. `header` as in `Source`; a detector that was fitted
    on an array takes columns named x0, x1, … or 0, 1, …, as a table without header has them. `skip_bad`: rows that
    cannot be scored have nothing but their number; else the first is a UserError, `skippable`.
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
            counts, lost = _score(detector, columns, table, alpha, spool, skip_bad)
        q = q_by_rank(counts)
        flagged = int(counts[: detector.calibration_.rank_of(alpha)].sum())
        with whole_file(out) as file:
            _finish(spool, q, file, out.suffix.lower())
    scored = int(counts.sum())
    found = (flagged, int(counts[q <= alpha].sum()), least_discoveries(scored, alpha, len(counts)))
    return Scored(scored + lost.num, *found, lost.num, named(table, lost))


def named(table: Table, lost: LeftOutRows) -> tuple[LeftOut, ...]:
    """The first rows of a table that have no score, as messages call them."""
    names = table.row_names([row for row, _ in lost.first])
    return tuple(LeftOut(name, why) for name, (_, why) in zip(names, lost.first, strict=True))


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


def _score(
    detector: EnergyDetector, columns: Columns, table: Table, alpha: float, spool: IO[bytes], skip_bad: bool
) -> tuple[np.ndarray, LeftOutRows]:
    """Write each block's scores to the spool; the number of rows by #{u_i >= E(x)}, (n + 1,), and those without one."""
    import pyarrow as pa

    where, first, lost, new = str(table.path), 0, LeftOutRows(), defaultdict[str, Counter[str]](Counter)
    counts = np.zeros(len(detector.calibration_.energies) + 1, np.int64)
    how: dict[str, Any] = {"alpha": alpha, "top": REASONS, "where": where, "parse": table.is_text}
    with pa.ipc.new_stream(spool, score_schema()) as stream:
        for frame in table.blocks(columns.names):
            bad = BadRows(skip=skip_bad)
            block = detector.score_block(frame, first=first, bad_rows=bad, **how)
            np.add.at(counts, block.rank, 1)
            good = bad.usable(first, len(frame))
            scored = frame if good.all() else frame.filter(good)
            for name, found in count_new(columns, scored, where, parse=table.is_text).items():
                new[name] += found
            stream.write_table(score_table(block, first, good, columns.reading.writing))
            first, lost = first + len(frame), lost.followed_by(LeftOutRows.of(bad.reasons.items()))
    if not first:
        raise UserError("must hold one row or more", argument=where)
    if lost.num == first:
        raise UserError(f"must hold a row that can be scored; the first is not: {lost.first[0][1]}", argument=where)
    line = told(columns, new)
    if line is not None:
        log.warning("%s: %s", where, line)
    return counts, lost


def _finish(spool: IO[bytes], q: np.ndarray, file: IO[bytes], suffix: str) -> None:
    """Copy the spool with the q-values that are known by now."""
    import pyarrow as pa

    spool.seek(0)
    out = writer(file, suffix, score_schema())
    for batch in pa.ipc.open_stream(spool):
        block = pa.Table.from_batches([batch])
        out.write(block.set_column(3, "q_value", q_column(batch["p_value"], q)))
    out.close()
