"""Score many files into a folder of parts, by any engine; the same call goes on with what was cut short."""

import hashlib
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from thalweg.apps.anomaly.calibration import q_by_rank
from thalweg.apps.anomaly.tables.score_file import least_discoveries
from thalweg.core import check
from thalweg.core.errors import UserError, row_from_zero
from thalweg.data.bad_rows import NAMED
from thalweg.data.columns.new_categories import told
from thalweg.data.image_files import LeftOut
from thalweg.scale import addresses, parts
from thalweg.scale.local_engine import LocalEngine
from thalweg.scale.plan import DONE, READERS, Plan, RowBlock, absolute, examine, resumable_plan_digest, write_plan
from thalweg.scale.ray_engine import RayEngine, require_ray
from thalweg.scale.scorers import SCORERS, Options, Scorer, require_dropped
from thalweg.scale.sources import KINDS, Source, rows_digest, source_of
from thalweg.scale.worker import Job, QValues, Worker

Kind = Literal["energy", "detector"]
SHOWN = 5  # files in a line
log = logging.getLogger("thalweg")


class Engine(NamedTuple):
    """Who computes.

    Args:
        name: local: this process; ray: workers of Ray.
        workers: Of Ray; None: one a core.
        address: Of a running cluster of Ray.
    """

    name: Literal["local", "ray"] = "local"
    workers: int | None = None
    address: str | None = None


class Scored(NamedTuple):
    """What was scored.

    Args:
        rows: Rows in the folder.
        parts: Files of them.
        computed: Of these, how many this call has made.
        retried: Blocks that were handed out again, as their worker had died.
        flagged: Rows flagged; None where the model sets no flags.
        mean_energy: Nats; None where it is not finite.
        discoveries: Rows flagged at a false discovery rate of the same size; None where no q-values are made.
        least_discoveries: The fewest rows that can be.
        levels: The number of p-values that the calibration allows.
        num_left_out: Rows in the folder without scores.
        left_out: The first `NAMED` of them.
        new_categories: By column the rows whose category the model does not know.
    """

    rows: int
    parts: int
    computed: int
    retried: int
    flagged: int | None
    mean_energy: float | None
    discoveries: int | None = None
    least_discoveries: int = 0
    levels: int = 0
    num_left_out: int = 0
    left_out: tuple[LeftOut, ...] = ()
    new_categories: Mapping[str, int] = {}


def score_files(
    kind: Kind,
    options: Options,
    data: str,
    out: str,
    *,
    engine: Engine = Engine(),  # noqa: B008
    block_rows: int | None = None,
    only_changed: bool = False,
    advance: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score each row of the files once, into parts in a folder: the file, then the columns of a single file's scores.

    A part is a block of rows; the same call makes only those that are missing. The folder also holds the plan, and,
    when all is there, what was counted. With `options.skip_bad` a row that cannot be scored has a row without scores;
    a part with one is missing for a call without it.

    Args:
        kind: What the folder of the model holds.
        options: The model, and how it scores.
        data: A file, a folder or a pattern; a path or an address of fsspec.
        out: A folder, a path or an address; a new one, or one that a call with the same plan has begun.
        engine: Who computes.
        block_rows: Rows of a block. None: 65,536, or fewer of many columns.
        only_changed: The folder may be of the same files with other values. They are read, and only the parts whose
            rows have changed are made again; q-values are filled in anew.
        advance: Is called with the number of parts that are there and of all parts.

    Raises:
        UserError: No rows in a block, no workers, no files, other columns than the fit's (before any work), a row that
            cannot be scored, a plan of other files, options or model. Parts that are there stay.
        DiskFull: The same.
    """
    check.one_of(("local", "ray"), engine=engine.name)
    if engine.workers is not None:
        check.count(workers=engine.workers)
    if block_rows is not None:
        check.count(block_rows=block_rows)
    if engine.name == "ray":
        require_ray()
    out = addresses.plain(out)
    scorer = SCORERS[kind].load(options)
    scorer.check_out(out)
    plan, sources = _plan(scorer, data, out, block_rows)
    before = resumable_plan_digest(plan, out, only_changed=only_changed)
    if before != plan.digest:
        if before is not None:
            _adopt(scorer, plan, sources, out, before)
        write_plan(plan, out)
    job = Job(kind, options, scorer.fingerprint, absolute(out), plan.digest, tuple(each[:2] for each in plan.inputs))
    missing = [block for block, found in _look(plan, out) if found is None or (found.left_out and not options.skip_bad)]
    running = _Running(job, scorer, engine, len(plan.blocks), advance or (lambda done, total: None))
    try:
        running.make(missing, None)
        _require_scores(plan, out, data)
        filling = _finish(scorer, plan, out, running) if scorer.levels else None
    finally:
        running.close()
    return _summary(scorer, plan, sources, data, out, (len(missing), running.retried), filling)


def _plan(scorer: Scorer, data: str, out: str, block_rows: int | None) -> tuple[Plan, list[Source]]:
    """The plan and its files, when the columns of all have been seen, and a row of each kind of file was scored."""
    found = addresses.listed(data, KINDS)
    home = absolute(out).rstrip("/") + "/"
    sources: list[Source] = []
    for address in found:
        if absolute(address).startswith(home):
            raise UserError(f"must not hold the input {address}", argument=out, hint="name another folder")
        sources.append(source_of(address, absolute(address), header=scorer.options.header, known=scorer.known))
    if any(source.names for source in sources):
        require_dropped(scorer.options.drop, sources, data)
    for source in sources:
        scorer.check(source)
    if scorer.options.header is not None and not any(source.is_text for source in sources):
        raise UserError("has no effect without a CSV", argument="--header", hint="leave it out")
    rows = scorer.default_block if block_rows is None else block_rows
    options = {
        "alpha": scorer.alpha,
        "drop": sorted(scorer.options.drop),
        "header": scorer.options.header,
    }
    plan = Plan({"kind": scorer.kind, "sha256": scorer.fingerprint}, options, rows, examine(sources, rows))
    if not plan.blocks:
        raise UserError("must hold one row or more", argument=data)
    _warn_of_empty(plan)
    _try(scorer, plan, sources)
    return plan, sources


def _warn_of_empty(plan: Plan) -> None:
    """A line about files without a row, of which nothing is in the output."""
    empty = [each.address for each in plan.inputs if not each.examined.rows]
    if empty:
        more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
        log.warning("without a row, so that no part holds scores of it: %s%s", ", ".join(empty[:SHOWN]), more)


def _try(scorer: Scorer, plan: Plan, sources: Sequence[Source]) -> None:
    """Score the first row of one file of each kind, so that what none of them can be is told before the work."""
    seen: set[Any] = set()
    for block in plan.blocks:
        source = sources[block.file]
        key = (type(source), tuple(source.names))
        if block.first == 0 and key not in seen:
            seen.add(key)
            first = block._replace(rows=1, span=source.first_row(block.span))
            scorer.score(scorer.read(source, first), source, first)


def _adopt(scorer: Scorer, plan: Plan, sources: Sequence[Source], out: str, before: str) -> None:
    """Take the parts of an earlier plan, by its digest, whose rows are as they were.

    The new plan is written after that. So where this is cut short, the same call does the rest.
    """
    there = {*addresses.names_in(out)}
    if DONE in there:
        addresses.remove(addresses.inside(out, DONE))
    for block in plan.blocks:
        about = parts.found(out, block, before) if block.part in there else None
        if about is not None and about.content == rows_digest(scorer.read(sources[block.file], block)):
            parts.move_to_plan(out, block, before, plan.digest)


def _look(plan: Plan, out: str) -> list[tuple[RowBlock, parts.PartFacts | None]]:
    """Each block with what its part says, None where that is missing."""
    there = {*addresses.names_in(out)}

    def one(block: RowBlock) -> tuple[RowBlock, parts.PartFacts | None]:
        return block, parts.found(out, block, plan.digest) if block.part in there else None

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(one, plan.blocks))


def _require_scores(plan: Plan, out: str, data: str) -> None:
    """UserError where no row at all has scores."""
    found = [each for _, each in _look(plan, out) if each is not None]
    if all(each.left_out == each.rows for each in found):
        raise UserError(
            f"must hold a row that can be scored; the first is not: {found[0].first_left_out[0][1]}", argument=data
        )


class _Running:
    """An engine, which is started when it has something to do."""

    def __init__(self, job: Job, scorer: Scorer, engine: Engine, total: int, advance: Callable[[int, int], None]):
        self.job, self.scorer, self.engine, self.total, self.advance = job, scorer, engine, total, advance
        self.started: LocalEngine | RayEngine | None = None
        self.retried = 0

    def make(self, blocks: Sequence[RowBlock], filling: QValues | None) -> None:
        """Make parts until all are there, or the first error."""
        if not blocks:
            return
        if self.started is None:
            self.started = self._start()
        done = self.total - len(blocks)
        for failure in self.started.run(blocks, filling):
            if failure is not None:
                raise failure.error()
            done += 1
            self.advance(done, self.total)

    def _start(self) -> LocalEngine | RayEngine:
        if self.engine.name == "local":
            return LocalEngine(Worker(self.job, self.scorer))
        return RayEngine(self.job, workers=self.engine.workers, address=self.engine.address)

    def close(self) -> None:
        """End the engine."""
        if self.started is not None:
            self.retried = self.started.retried
            self.started.close()


def _finish(scorer: Scorer, plan: Plan, out: str, running: _Running) -> tuple[np.ndarray, np.ndarray]:
    """Fill the q-values of all parts in; (rows by rank, q by rank)."""
    with ThreadPoolExecutor(READERS) as pool:
        counted = pool.map(lambda block: parts.counts(out, block, scorer.levels), plan.blocks)
        counts = sum(counted, np.zeros(scorer.levels, np.int64))
    q = q_by_rank(counts)
    filling = QValues(q, hashlib.sha256(q.tobytes()).hexdigest())
    running.make([b for b, found in _look(plan, out) if found is not None and found.q != filling.digest], filling)
    return counts, q


def _summary(
    scorer: Scorer,
    plan: Plan,
    sources: Sequence[Source],
    data: str,
    out: str,
    work: tuple[int, int],
    filling: tuple[np.ndarray, np.ndarray] | None,
) -> Scored:
    """The figures of all parts, which are also written beside them: then all is done."""
    looked = [(block, each) for block, each in _look(plan, out) if each is not None]
    found = [each for _, each in looked]
    rows, lost = sum(each.rows for each in found), sum(each.left_out for each in found)
    flags = [each.flagged for each in found if each.flagged is not None]
    mean = math.fsum(each.energy for each in found) / (rows - lost)
    scored = Scored(
        rows,
        len(found),
        *work,
        sum(flags) if len(flags) == len(found) else None,
        mean if math.isfinite(mean) else None,
        num_left_out=lost,
        left_out=_left_out(plan, looked),
        new_categories=_tell_new(scorer, sources, found, data),
    )
    if filling is not None:
        counts, q = filling
        least = least_discoveries(rows - lost, scorer.alpha, scorer.levels)
        discoveries = int(counts[q <= scorer.alpha].sum())
        scored = scored._replace(discoveries=discoveries, least_discoveries=least, levels=scorer.levels)
    about = {"plan": plan.digest, **{k: v for k, v in scored._asdict().items() if k not in ("computed", "retried")}}
    addresses.write_bytes(addresses.inside(out, DONE), json.dumps(about, indent=1).encode())
    return scored


def _left_out(plan: Plan, looked: Sequence[tuple[RowBlock, parts.PartFacts]]) -> tuple[LeftOut, ...]:
    """The first rows without scores, by their file and number."""
    names = (
        LeftOut(f"{plan.inputs[block.file].address}, {row_from_zero(row)}", why)
        for block, found in looked
        for row, why in found.first_left_out
    )
    return tuple(islice(names, NAMED))


def _tell_new(scorer: Scorer, sources: Sequence[Source], found: Sequence[parts.PartFacts], data: str) -> dict[str, int]:
    """Say which categories the model does not know, in a line for all files; their rows by column."""
    new = defaultdict[str, Counter[str | None]](Counter)
    for part in found:
        for name, counts in part.new.items():
            new[name] += Counter(dict(counts))
    columns = next((each for source in sources if (each := scorer.columns_of(source)) is not None), None)
    line = None if columns is None else told(columns, new)
    if line is not None:
        log.warning("%s: %s", data, line)
    return {name: counts.total() for name, counts in new.items()}
