"""What scores a block of rows: a trained energy, or a detector of tables."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from thalweg.apps.anomaly.calibration import check_rate
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tables import score_file
from thalweg.apps.anomaly.tables.score_columns import REASONS, score_table
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.files import load_as
from thalweg.bundle.inputs import fine_enough
from thalweg.core import store
from thalweg.core.check import share
from thalweg.core.errors import ROW, UserError
from thalweg.data import files
from thalweg.data.bad_rows import BadRows, LeftOutRows, with_empty_rows
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.new_categories import count_new
from thalweg.data.csv_header import Known
from thalweg.data.formats.base import BLOCK_ROWS
from thalweg.data.validate import arrange, check_cells, verify
from thalweg.scale import addresses
from thalweg.scale.plan import RowBlock, block_rows_for
from thalweg.scale.sources import NpySource, Source

if TYPE_CHECKING:
    import pyarrow as pa

MEND = "leave it out with --drop {name!r}"
NOT_FINITE, DROP = "holds NaN or infinity", "drop the row, or fill the value"


class Options(NamedTuple):
    """How a model scores, as a worker is told.

    Args:
        run: The model's folder from every folder, or its id on the Hub.
        alpha: Flags p-values up to this; None: the detector's rate.
        drop: Columns to leave out.
        header: Whether a CSV's first line names its columns.
        trust: Packages whose classes the model may name.
        device: Where it computes.
        skip_bad: Whether rows that cannot be scored stay without scores; else the first is an error.
    """

    run: str
    alpha: float | None = None
    drop: tuple[str, ...] = ()
    header: bool | None = None
    trust: tuple[str, ...] = ()
    device: str = "auto"
    skip_bad: bool = False


class ScoredRows(NamedTuple):
    """The scores of a block.

    Args:
        table: A row each, empty where a row was not scored.
        left_out: The rows that were not, by their numbers in the file.
        new: By column the categories that the model does not know, with their rows.
    """

    table: "pa.Table"
    left_out: LeftOutRows
    new: dict[str, Counter[str]]


class Scorer(ABC):
    """Abstract: a loaded model that scores blocks of rows.

    Args:
        options: As given.
        folder: Of the model.
        levels: The number of p-values there are, where q-values are wanted; else 0.
        cells: Numbers of a row.
    """

    kind: ClassVar[str]

    def __init__(self, options: Options, folder: Path, *, levels: int, cells: int):
        self.options, self.folder, self.levels, self.cells = options, folder, levels, cells
        self.fingerprint = hashlib.sha256((folder / store.MANIFEST).read_bytes()).hexdigest()

    @classmethod
    @abstractmethod
    def load(cls, options: Options) -> Self:
        """The model, from its folder."""

    @property
    @abstractmethod
    def known(self) -> Known:
        """What tells the first line of a CSV."""

    @property
    @abstractmethod
    def alpha(self) -> float:
        """The rate of flags."""

    def check_out(self, out: str) -> None:  # noqa: B027 — a run takes other files
        """UserError where the scores would lie in a folder that may hold nothing else."""

    @abstractmethod
    def check(self, source: Source) -> None:
        """UserError where the columns of a file are not those of the model."""

    @abstractmethod
    def read(self, source: Source, block: RowBlock) -> Any:
        """The rows of a block, an Arrow table or an array, with what the model uses of them."""

    @abstractmethod
    def score(self, rows: Any, source: Source, block: RowBlock) -> ScoredRows:
        """The scores of the rows of a block. UserError, `skippable`, for one without, unless those are skipped."""

    @abstractmethod
    def columns_of(self, source: Source) -> Columns | None:
        """What the columns of a file that was read hold; None where it has none."""

    def new_categories(self, frame: "pa.Table", source: Source) -> dict[str, Counter[str]]:
        """By column the categories that the model does not know, in rows that were scored."""
        columns = self.columns_of(source)
        return {} if columns is None else count_new(columns, frame, source.address, parse=source.is_text)

    @property
    def default_block(self) -> int:
        """Rows of a block where nobody says."""
        return block_rows_for(self.cells)


class EnergyScorer(Scorer):
    """A trained energy: name (the row from 0), energy, log_prob, p_value, flag, as far as it has them."""

    kind = "energy"

    def __init__(self, options: Options, bundle: Bundle):
        if bundle.alphabet is not None:
            text = "must be a model of images or rows for many files; it is one of texts"
            raise UserError(text, argument=options.run, hint="score one .txt file into a .csv or .parquet")
        if not (bundle.path / store.MANIFEST).exists():
            text = "must be a run that has ended, as its weights would change between the blocks"
            raise UserError(text, argument=options.run, hint="wait for its end, or stop it")
        super().__init__(options, bundle.path, levels=0, cells=math.prod(bundle.shape))
        self.bundle = bundle
        share(alpha=self.alpha)

    @classmethod
    def load(cls, options: Options) -> Self:
        return cls(options, load_as(options.run, Bundle, trust=options.trust, device=options.device))

    @property
    def known(self) -> Known:
        return self.bundle.layout.known

    @property
    def alpha(self) -> float:
        return 0.01 if self.options.alpha is None else self.options.alpha

    def check(self, source: Source) -> None:
        if isinstance(source, NpySource):
            if self.options.drop:
                raise UserError("has no effect on an array", argument="--drop", hint="leave it out")
            return
        layout, used = self.bundle.layout, self._used(source)
        if not source.headless:
            layout.check(source.names, source.address, drop=self.options.drop, mend=MEND)
        wanted = self.cells if layout.columns is None else len(layout.columns.columns)
        if len(used) != wanted:
            text = f"must have {wanted} columns, as the model; it has {len(used)}"
            raise UserError(text, argument=source.address)

    def _used(self, source: Source) -> list[str]:
        left_out = {*self.options.drop, *self.bundle.layout.ignored}
        return [name for name in source.names if name not in left_out]

    def read(self, source: Source, block: RowBlock) -> Any:
        return source.read(block.first, block.rows, self._used(source), block.span)

    def columns_of(self, source: Source) -> Columns | None:
        layout = self.bundle.layout
        if layout.columns is None or not layout.categories or isinstance(source, NpySource):
            return None
        named = layout.names is not None  # as `_of_table` calls the columns
        return layout.columns if named else layout.columns_called(self._used(source))

    def score(self, rows: Any, source: Source, block: RowBlock) -> ScoredRows:
        import pyarrow as pa

        bad, new = BadRows(skip=self.options.skip_bad), {}
        if isinstance(source, NpySource):
            x, good = self._of_array(rows, source, block, bad)
        else:
            rows = self._named(rows, source)
            x, good = self._of_table(rows, source, block, bad)
            new = self.new_categories(rows if good.all() else rows.filter(good), source)
        scores = self._scores(x) if good.any() else self._empty
        name = pa.array([str(i) for i in range(block.first, block.first + block.rows)])
        table = with_empty_rows(scores, good).add_column(0, "name", name)
        return ScoredRows(table, LeftOutRows.of(bad.reasons.items()), new)

    def _scores(self, x: Any) -> "pa.Table":
        import pyarrow as pa

        scores = self.bundle.score(x, alpha=self.alpha)
        return pa.table({key: pa.array(value.tolist()) for key, value in scores.items()})

    @cached_property
    def _empty(self) -> "pa.Table":
        """The columns of scores without a row."""
        import torch

        return self._scores(torch.zeros((1, *self.bundle.shape), dtype=self.bundle.dtype)).slice(0, 0)

    def _named(self, frame: "pa.Table", source: Source) -> "pa.Table":
        """The table with the names of the model, where it has none itself: by order, as `check` has seen."""
        names = self.bundle.layout.names
        return frame.rename_columns(names) if source.headless and names is not None else frame

    def _of_table(self, frame: "pa.Table", source: Source, block: RowBlock, bad: BadRows) -> tuple[Any, np.ndarray]:
        """(the rows that can be scored, which they are)."""
        import torch

        layout = self.bundle.layout
        how: Any = {"first": block.first, "headless": layout.names is None, "parse": source.is_text, "bad_rows": bad}
        x = layout.encode(frame, where=source.address, **how)
        numbers = range(block.first, block.first + len(x))
        names = layout.owners or [str(name) for name in source.names]
        check_cells(x, names, source.address, rows=numbers, largest=files.LARGEST, bad_rows=bad)
        good, singles = bad.usable(block.first, len(x)), None if source.is_text else layout.singles(frame)
        return self._fit(torch.from_numpy(x[good]), source.address, singles) if good.any() else None, good

    def _of_array(self, array: np.ndarray, source: Source, block: RowBlock, bad: BadRows) -> tuple[Any, np.ndarray]:
        """(the rows that can be scored, which they are)."""
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                finite = np.isfinite(array.reshape(len(array), -1).astype(np.float32)).all(1)
            for row in (block.first + np.flatnonzero(~finite)).tolist():
                error = UserError(f"must be finite, and is not in {ROW}", argument=source.address, hint=DROP, row=row)
                bad.refuse(error, row, NOT_FINITE)
        good = bad.usable(block.first, len(array))
        if not good.any():
            return None, good
        return self._fit(files.rows_of(array[good], self.bundle.shape, source.address), source.address, None), good

    def _fit(self, x: Any, where: str, singles: list[bool] | None) -> Any:
        x = arrange(x, self.bundle.shape, where)
        verify(x, self.bundle.shape, "image" if x.ndim == 4 else "vector", where=where)
        return fine_enough(self.bundle, x, where, singles)


class TableScorer(Scorer):
    """A detector of tables: the columns of `score_file`, the q-value left open."""

    kind = "detector"

    def __init__(self, options: Options, bundle: DetectorBundle):
        score_file.require_tables(bundle)
        assert bundle.path is not None  # as it was loaded
        n = len(bundle.detector.calibration_.energies)
        super().__init__(options, bundle.path, levels=n + 1, cells=len(bundle.detector.features()[0]))
        self.bundle = bundle
        check_rate(self.alpha, "alpha")

    @classmethod
    def load(cls, options: Options) -> Self:
        return cls(options, load_as(options.run, DetectorBundle, trust=options.trust, device=options.device))

    @property
    def known(self) -> Known:
        return score_file.known_columns(self.bundle)

    @property
    def alpha(self) -> float:
        return self.bundle.detector.rate_ if self.options.alpha is None else self.options.alpha

    def check_out(self, out: str) -> None:
        if not addresses.is_remote(out) and Path(out).resolve().is_relative_to(self.folder.resolve()):
            raise UserError("must lie outside of the detector's folder", argument=out, hint="name another folder")

    def check(self, source: Source) -> None:
        if isinstance(source, NpySource):
            raise UserError("must be a table, CSV or Parquet, for a detector of tables", argument=source.address)
        score_file.matched(self.bundle, source.names, source.address, self.options.drop)

    def read(self, source: Source, block: RowBlock) -> Any:
        wanted = set(self.bundle.detector.columns_for(source.names, source.address).names)
        names = [name for name in source.names if name in wanted]
        return source.read(block.first, block.rows, names, block.span)

    def columns_of(self, source: Source) -> Columns:
        return self.bundle.detector.columns_for(source.names, source.address)

    def score(self, rows: Any, source: Source, block: RowBlock) -> ScoredRows:
        import pyarrow as pa

        how: Any = {"alpha": self.alpha, "top": REASONS, "where": source.address, "parse": source.is_text}
        writing = self.columns_of(source).reading.writing
        tables, lost, new = [], LeftOutRows(), defaultdict[str, Counter[str]](Counter)
        for start in range(0, len(rows), BLOCK_ROWS):
            first, part, bad = block.first + start, rows.slice(start, BLOCK_ROWS), BadRows(skip=self.options.skip_bad)
            scored = self.bundle.detector.score_block(part, first=first, bad_rows=bad, **how)
            good = bad.usable(first, len(part))
            tables.append(score_table(scored, first, good, writing))
            lost = lost.followed_by(LeftOutRows.of(bad.reasons.items()))
            for name, found in self.new_categories(part if good.all() else part.filter(good), source).items():
                new[name] += found
        return ScoredRows(pa.concat_tables(tables), lost, dict(new))


SCORERS: dict[str, type[Scorer]] = {cls.kind: cls for cls in (EnergyScorer, TableScorer)}


def require_dropped(drop: Iterable[str], sources: Sequence[Source], data: str) -> None:
    """UserError for a column to leave out that none of the files has."""
    names = {name: None for source in sources for name in source.names}
    unknown = [name for name in drop if name not in names]
    if unknown:
        which = "" if len(sources) == 1 else f" in any of the {len(sources)} files"
        hint = f"there are {', '.join(names)[:200]}"
        raise UserError(f"no column {unknown[0]!r}{which}", argument=data, hint=hint)
