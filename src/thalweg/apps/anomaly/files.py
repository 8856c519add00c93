"""From a table in a file to a detector, and from a detector and a table to a file of scores.

Scoring reads the table once. Each block's scores go to a nameless file beside the output, and the p-values are counted:
as they take n + 1 values only, the counts give every row's q-value over the whole table, exactly, when the last block
is read. Then the output is written, and put in place when it is whole. Memory: one block, n counts and the detector.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from thalweg.apps.anomaly.calibrate import check_rate, q_by_rank
from thalweg.apps.anomaly.columns import Columns
from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.reasons import Reason
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tables import Table, open_table, writer
from thalweg.core.errors import UserError
from thalweg.core.store import write_errors
from thalweg.core.stream import whole_file

REASONS = 3
MAX_ROWS = 50_000


class Scored(NamedTuple):
    """Rows scored, rows flagged, and rows that are flagged at a false discovery rate of the same size."""

    rows: int
    flagged: int
    discoveries: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table to fit on: the file, the column that is a label (`normal`: its value in the rows to use; None: all rows),
    the columns to leave out, and the most rows to use, drawn evenly from the whole file where it has more.
    """

    path: Path
    target: str | None = None
    normal: str | None = None
    drop: Sequence[str] = ()
    max_rows: int = MAX_ROWS
    seed: int = 0


def fit_file(source: Source, **parameters: Any) -> DetectorBundle:
    """A detector of the table's rows; `parameters` are `EnergyDetector`'s. UserError for what cannot be used."""
    table = open_table(source.path)
    where, ignored = str(table.path), [*source.drop, *([source.target] if source.target else [])]
    unknown = [name for name in ignored if name not in table.names]
    if unknown:
        raise UserError(f"{where}: no column {unknown[0]!r}; there are {', '.join(table.names)[:200]}")
    if source.normal is not None and source.target is None:
        raise UserError(f"normal={source.normal!r} without a target column; name the column it is a value of")
    frame, seen = _drawn(table, source)
    if not len(frame):
        raise UserError(f"{where}: no rows to fit on{_of_normal(source)}; give a table with rows")
    kept = frame.select([name for name in table.names if name not in ignored])
    columns = Columns.fit(kept, where=where, parse=table.is_text)
    detector = EnergyDetector(random_state=source.seed, **parameters)
    try:
        detector.fit(_typed(kept, columns, where))
    except ValueError as error:
        raise UserError(f"{where}: {' '.join(str(error).removeprefix('X: ').split())}") from error
    about = {"table": table.path.name, "rows": seen, "rows_used": len(kept), "ignored": ignored, "seed": source.seed}
    return DetectorBundle(detector, about)


def score_file(
    bundle: DetectorBundle, path: Path, out: Path, *, alpha: float | None = None, drop: Sequence[str] = ()
) -> Scored:
    """Score a table block by block into a CSV or Parquet file of one line a row, in order.

    row (from 1), energy (nats), p_value, q_value (over the whole table), flag = p_value <= alpha, and of flagged rows
    the three main reasons: feature_i, share_i, value_i, repair_i.
    """
    detector, table = bundle.detector, open_table(path)
    alpha = detector.false_alarm_rate if alpha is None else check_rate(alpha)
    if detector.kind != "table" or detector.columns_ is None:
        raise UserError(f"{bundle.path}: not fitted on a table with names; fit it with `thalweg detect fit`")
    detector.columns_.match(table.names, str(path), ignore={*bundle.about.get("ignored", ()), *drop})
    if out.exists() and out.samefile(path):
        raise UserError(f"{out}: the table itself; name another file for the scores")
    with _spool(out) as spool:
        counts = _score(detector, table, alpha, spool)
        q = q_by_rank(counts)
        flagged = int(counts[: detector.calibration_.rank_of(alpha)].sum())
        with whole_file(out) as file:
            _finish(spool, q, file, out.suffix.lower())
    return Scored(int(counts.sum()), flagged, int(counts[q <= alpha].sum()))


def _score(detector: EnergyDetector, table: Table, alpha: float, spool: IO[bytes]) -> np.ndarray:
    """Write each block's scores to the spool; the number of rows by #{u_i >= E(x)}, (n + 1,)."""
    import pyarrow as pa

    where, calibration, first = str(table.path), detector.calibration_, 0
    counts = np.zeros(len(calibration.energies) + 1, np.int64)
    with pa.ipc.new_stream(spool, _schema()) as stream:
        for block in table.blocks(detector.columns_.names):
            x = detector.columns_.encode(block, where=where, first=first)
            detector.check_values(x, where=where, first=first)
            u = detector.energy_of_rows(x)
            rank = calibration.at_least(u)
            p = (1 + rank) / len(counts)
            np.add.at(counts, rank, 1)
            columns = {"row": np.arange(first, first + len(x)) + 1, "energy": u, "p_value": p, "q_value": p}
            columns |= {"flag": p <= alpha} | _reasons(detector, block, x, np.flatnonzero(p <= alpha))
            stream.write_table(pa.table(columns, schema=_schema()))
            first += len(x)
    if not first:
        raise UserError(f"{where}: no rows; give a table with at least one")
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


def _reasons(detector: EnergyDetector, block: Any, x: np.ndarray, rows: np.ndarray) -> dict[str, list[Any]]:
    """The reasons of the chosen rows as columns of the block, empty elsewhere and beyond the last feature."""
    columns = {name: [None] * len(x) for name in _schema().names[5:]}
    if not len(rows):
        return columns
    given = detector.columns_.values(block.take(rows))
    place, before = 0, -1
    for reason in detector.explain_rows(x[rows], given, REASONS):
        place, before = place + 1 if reason.row == before else 1, reason.row
        for name, value in _told(reason).items():
            columns[f"{name}_{place}"][rows[reason.row]] = value
    return columns


def _told(reason: Reason) -> dict[str, Any]:
    value = "" if reason.value is None else _short(reason.value)
    return {"feature": reason.feature, "share": reason.share, "value": value, "repair": _short(reason.repair)}


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _drawn(table: Table, source: Source) -> tuple[Any, int]:
    """An Arrow table of at most `max_rows` of the wanted rows, each as likely as any other, and how many there are."""
    import pyarrow as pa
    from pyarrow import compute

    random = np.random.default_rng(source.seed)
    held, keys, seen = None, np.zeros(0), 0
    wanted = {*table.names} - {*source.drop}
    for block in table.blocks(wanted):
        if source.normal is not None:
            block = block.filter(compute.equal(block[source.target].cast(pa.string()), source.normal))
        seen += len(block)
        held = block if held is None else pa.concat_tables([held, block])
        keys = np.r_[keys, random.random(len(block))]
        if len(keys) > source.max_rows:
            kept = np.sort(np.argpartition(keys, source.max_rows - 1)[: source.max_rows])
            held, keys = held.take(kept), keys[kept]
    return held if held is not None else pa.table({name: [] for name in table.names}), seen


def _typed(frame: Any, columns: Columns, where: str) -> Any:
    """The frame with numbers for texts that are numbers, so that a fit from a file and one from memory are the same."""
    import pyarrow as pa

    encoded = {}
    for column in columns.columns:
        one = Columns((column,))
        texts = column.categories is not None
        encoded[column.name] = (
            frame[column.name].cast(pa.string()).combine_chunks()
            if texts
            else pa.array(one.encode(frame.select([column.name]), where=where)[:, 0])
        )
    return pa.table(encoded)


def _of_normal(source: Source) -> str:
    return "" if source.normal is None else f" with {source.target} = {source.normal}"


@contextmanager
def _spool(out: Path) -> Iterator[IO[bytes]]:
    """A file without a name in the folder of the output, gone when it is closed or the process dies."""
    with write_errors(out, None), tempfile.TemporaryFile(dir=out.parent) as file:
        yield file
