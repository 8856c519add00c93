"""From a table in a file to a detector, and from a detector and a table to a file of scores.

Scoring reads the table once. Each block's scores go to a nameless file beside the output, and the p-values are counted:
as they take n + 1 values only, the counts give every row's q-value over the whole table, exactly, when the last block
is read. Then the output is written, and put in place when it is whole. Memory: one block, n counts and the detector.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from thalweg.apps.anomaly.calibration import check_rate, q_by_rank
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.explain import ScoredBlock
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tables.column_selection import learn
from thalweg.apps.anomaly.tables.training_rows import Source, draw
from thalweg.core.atomic_write import whole_file
from thalweg.core.errors import UserError
from thalweg.core.store import write_errors
from thalweg.data.columns.encoding import Columns
from thalweg.data.csv_header import Known
from thalweg.data.score_table import writer
from thalweg.data.tables import Table, open_table

REASONS = 3


class Scored(NamedTuple):
    """Rows scored, rows flagged, rows that are flagged at a false discovery rate of the same size, and how many rows
    that takes at the least: so many must have the least p-value that the calibration's rows allow.
    """

    rows: int
    flagged: int
    discoveries: int
    least_discoveries: int


def fit_file(source: Source, **parameters: Any) -> DetectorBundle:
    """A detector of the table's rows; `parameters` are `EnergyDetector`'s. UserError for what cannot be used.

    `about["columns"]` of the bundle says what the columns hold.
    """
    detector = EnergyDetector(random_state=source.seed, **parameters)
    table = open_table(source.path, header=source.header)
    where, ignored = str(table.path), [*source.drop, *([source.target] if source.target else [])]
    table.require(ignored)
    if source.normal is not None and source.target is None:
        hint = "name the column it is a value of"
        raise UserError("needs a target column", argument="normal", value=source.normal, hint=hint)
    reading = detector.reading
    drawn = draw(table, source, reading.words(table.is_text))
    kept = drawn.frame.select([name for name in table.names if name not in ignored])
    contents = learn(kept, reading, where=where, parse=table.is_text, rows=drawn.rows.tolist())
    try:
        detector.fit(contents)
    except UserError as error:
        if error.argument != "X":
            raise
        raise error.replace(argument=where) from error
    used = int((~np.isnan(contents.x).any(1)).sum())
    about = {"table": table.path.name, "header": not table.headless, "rows": drawn.seen, "rows_used": used}
    about |= {"ignored": ignored, "seed": source.seed, "columns": contents.to_dict()}
    return DetectorBundle(detector, about)


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
    if detector.kind != "table":
        raise UserError(f"{bundle.path}: a detector of images, which files of scores are not made for; use Python")
    names = detector.columns_.names if detector.columns_ is not None else []
    table = open_table(path, header=header, known=Known(names, bundle.about.get("header") is False))
    columns = detector.columns_for(table.names, str(path))
    alpha = detector.rate_ if alpha is None else check_rate(alpha, "alpha")
    table.require(drop)
    fitted = [name for name in drop if name in columns.names]
    if fitted:
        raise UserError(f"{path}: column {fitted[0]!r} is one of the fit, which scoring needs; do not drop it")
    columns.match(
        table.names,
        str(path),
        ignore={*bundle.about.get("ignored", ()), *drop},
        mend="leave it out with --drop {name!r}",
    )
    if out.exists() and out.samefile(path):
        raise UserError(f"{out}: the table itself; name another file for the scores")
    if bundle.path is not None and out.resolve().is_relative_to(bundle.path.resolve()):
        raise UserError(f"{out}: in the detector's folder, which holds the detector alone; write the scores elsewhere")
    with _spool(out) as spool:
        counts = _score(detector, columns, table, alpha, spool)
        q = q_by_rank(counts)
        flagged = int(counts[: detector.calibration_.rank_of(alpha)].sum())
        with whole_file(out) as file:
            _finish(spool, q, file, out.suffix.lower())
    rows = int(counts.sum())
    return Scored(rows, flagged, int(counts[q <= alpha].sum()), _least(rows, alpha, len(counts)))


def _least(rows: int, alpha: float, levels: int) -> int:
    """The fewest rows that can be reported at the false discovery rate alpha: k with k alpha / rows >= 1 / levels."""
    return max(1, int(np.ceil(rows / (alpha * levels) - 1e-9)))


def _score(detector: EnergyDetector, columns: Columns, table: Table, alpha: float, spool: IO[bytes]) -> np.ndarray:
    """Write each block's scores to the spool; the number of rows by #{u_i >= E(x)}, (n + 1,)."""
    import pyarrow as pa

    where, first = str(table.path), 0
    counts = np.zeros(len(detector.calibration_.energies) + 1, np.int64)
    with pa.ipc.new_stream(spool, _schema()) as stream:
        for frame in table.blocks(columns.names):
            block = detector.score_block(frame, alpha=alpha, top=REASONS, where=where, first=first, parse=table.is_text)
            np.add.at(counts, block.rank, 1)
            stream.write_table(pa.table(_told(block, first), schema=_schema()))
            first += len(block.energy)
    if not first:
        raise UserError("no rows", argument=where, hint="give a table with at least one")
    return counts


def _finish(spool: IO[bytes], q: np.ndarray, file: IO[bytes], suffix: str) -> None:
    """Copy the spool with the q-values that are known by now."""
    import pyarrow as pa

    spool.seek(0)
    out = writer(file, suffix, _schema())
    for batch in pa.ipc.open_stream(spool):
        rank = np.rint(np.asarray(batch["p_value"]) * len(q)).astype(int) - 1
        block = pa.Table.from_batches([batch])
        out.write(block.set_column(3, "q_value", pa.array(q[rank])))
    out.close()


def _schema() -> Any:
    import pyarrow as pa

    fields = [("row", pa.int64()), ("energy", pa.float64()), ("p_value", pa.float64()), ("q_value", pa.float64())]
    fields.append(("flag", pa.bool_()))
    for i in range(1, REASONS + 1):
        fields += [(f"feature_{i}", pa.string()), (f"share_{i}", pa.float64())]
        fields += [(f"value_{i}", pa.string()), (f"repair_{i}", pa.string())]
    return pa.schema(fields)


def _told(block: ScoredBlock, first: int) -> dict[str, Any]:
    """A block as columns of the score table: no reasons where a row is not flagged, or has fewer features."""
    told: dict[str, Any] = {name: [None] * len(block.energy) for name in _schema().names}
    told |= {"row": np.arange(first, first + len(block.energy)) + 1, "energy": block.energy}
    told |= {"p_value": block.p_value, "q_value": block.p_value, "flag": block.flag}  # q waits for the last block
    place, before = 0, -1
    for reason in block.reasons:
        place, before = place + 1 if reason.row == before else 1, reason.row
        value = "" if reason.value is None else _short(reason.value)
        for name, cell in zip(
            ("feature", "share", "value", "repair"),
            (reason.feature, reason.share, value, _short(reason.repair)),
            strict=True,
        ):
            told[f"{name}_{place}"][reason.row] = cell
    return told


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def _spool(out: Path) -> Iterator[IO[bytes]]:
    """A file without a name in the folder of the output, gone when it is closed or the process dies."""
    with write_errors(out, None), tempfile.TemporaryFile(dir=out.parent) as file:
        yield file
