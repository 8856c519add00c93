"""What scores a block of rows: a trained energy, or a detector of tables."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from thalweg.apps.anomaly.calibration import check_rate
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tables import score_file
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.files import load_as
from thalweg.bundle.inputs import fine_enough
from thalweg.core import store
from thalweg.core.check import share
from thalweg.core.errors import UserError
from thalweg.data import files
from thalweg.data.csv_header import Known
from thalweg.data.formats.base import BLOCK_ROWS
from thalweg.data.validate import arrange, check_cells, verify
from thalweg.scale.plan import RowBlock, block_rows_for
from thalweg.scale.sources import NpySource, Source

if TYPE_CHECKING:
    import pyarrow as pa

MEND = "leave it out with --drop {name!r}"


class Options(NamedTuple):
    """How a model scores, as a worker is told.

    Args:
        run: The model's folder from every folder, or its id on the Hub.
        alpha: Flags p-values up to this; None: the detector's rate.
        drop: Columns to leave out.
        header: Whether a CSV's first line names its columns.
        trust: Packages whose classes the model may name.
        device: Where it computes.
    """

    run: str
    alpha: float | None = None
    drop: tuple[str, ...] = ()
    header: bool | None = None
    trust: tuple[str, ...] = ()
    device: str = "auto"


class Scorer(ABC):
    """Abstract: a loaded model that scores blocks of rows.

    Args:
        options: As given.
        levels: The number of p-values there are, where q-values are wanted; else 0.
        cells: Numbers of a row.
    """

    kind: ClassVar[str]

    def __init__(self, options: Options, folder: Path, *, levels: int, cells: int):
        self.options, self.levels, self.cells = options, levels, cells
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

    @abstractmethod
    def check(self, source: Source) -> None:
        """UserError where the columns of a file are not those of the model."""

    @abstractmethod
    def read(self, source: Source, block: RowBlock) -> Any:
        """The rows of a block, an Arrow table or an array, with what the model uses of them."""

    @abstractmethod
    def score(self, rows: Any, source: Source, block: RowBlock) -> "pa.Table":
        """The scores of the rows of a block, one each."""

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

    def score(self, rows: Any, source: Source, block: RowBlock) -> "pa.Table":
        import pyarrow as pa

        is_array = isinstance(source, NpySource)
        x = self._of_array(rows, source, block) if is_array else self._of_table(rows, source, block)
        scores = self.bundle.score(x, alpha=self.alpha)
        name = [str(i) for i in range(block.first, block.first + len(x))]
        columns = {"name": pa.array(name), **{key: pa.array(value.tolist()) for key, value in scores.items()}}
        return pa.table(columns)

    def _of_table(self, frame: "pa.Table", source: Source, block: RowBlock) -> Any:
        import torch

        layout, headless = self.bundle.layout, source.headless or self.bundle.layout.names is None
        if source.headless and layout.names is not None:  # by order, as `check` has seen that there are as many
            frame, headless = frame.rename_columns(layout.names), False
        how = {"first": block.first, "headless": headless, "parse": source.is_text}
        x = layout.encode(frame, where=source.address, **how)
        numbers = range(block.first, block.first + len(x))
        names = layout.owners or [str(name) for name in source.names]
        check_cells(x, names, source.address, rows=numbers, largest=files.LARGEST)
        singles = None if source.is_text else layout.singles(frame)
        return self._fit(torch.from_numpy(x), source.address, singles)

    def _of_array(self, array: np.ndarray, source: Source, block: RowBlock) -> Any:
        if array.dtype.kind == "f":
            bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
            if bad.any():
                text = f"must be finite, and is not in row {block.first + int(bad.argmax()) + 1}"
                raise UserError(text, argument=source.address, hint="drop the row")
        return self._fit(files.rows_of(array, self.bundle.shape, source.address), source.address, None)

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

    def check(self, source: Source) -> None:
        if isinstance(source, NpySource):
            raise UserError("must be a table, CSV or Parquet, for a detector of tables", argument=source.address)
        score_file.matched(self.bundle, source.names, source.address, self.options.drop)

    def read(self, source: Source, block: RowBlock) -> Any:
        wanted = set(self.bundle.detector.columns_for(source.names, source.address).names)
        names = [name for name in source.names if name in wanted]
        return source.read(block.first, block.rows, names, block.span)

    def score(self, rows: Any, source: Source, block: RowBlock) -> "pa.Table":
        import pyarrow as pa

        detector, where, found = self.bundle.detector, source.address, []
        for start in range(0, len(rows), BLOCK_ROWS):
            first = block.first + start
            part = rows.slice(start, BLOCK_ROWS)
            scored = detector.score_block(
                part, alpha=self.alpha, top=score_file.REASONS, where=where, first=first, parse=source.is_text
            )
            schema = score_file.score_schema()
            table = pa.table(score_file.score_columns(scored, first), schema=schema)
            open_q = pa.nulls(len(table), pa.float64())  # until all rows are counted
            found.append(table.set_column(schema.get_field_index("q_value"), schema.field("q_value"), open_q))
        return pa.concat_tables(found)


SCORERS: dict[str, type[Scorer]] = {cls.kind: cls for cls in (EnergyScorer, TableScorer)}


def require_dropped(drop: Iterable[str], sources: Sequence[Source], data: str) -> None:
    """UserError for a column to leave out that none of the files has."""
    names = {name: None for source in sources for name in source.names}
    unknown = [name for name in drop if name not in names]
    if unknown:
        which = "" if len(sources) == 1 else f" in any of the {len(sources)} files"
        hint = f"there are {', '.join(names)[:200]}"
        raise UserError(f"no column {unknown[0]!r}{which}", argument=data, hint=hint)
