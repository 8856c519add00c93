"""What a worker does: it loads the model once and makes parts, whichever engine asks it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np

from thalweg.core.errors import DiskFull, ThalwegError, UserError, row_from_zero
from thalweg.scale import parts
from thalweg.scale.plan import RowBlock
from thalweg.scale.scorers import SCORERS, Options, Scorer
from thalweg.scale.sources import Source, rows_digest, source_of


class Job(NamedTuple):
    """What every worker is told.

    Args:
        kind: Of the model.
        options: How it scores.
        fingerprint: Of the model.
        out: The output folder.
        digest: Of the plan.
        files: (address, path) of each input.
    """

    kind: str
    options: Options
    fingerprint: str
    out: str
    digest: str
    files: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return self._asdict() | {"options": self.options._asdict()}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """The inverse of `to_dict`, after JSON."""
        options = stored["options"]
        options = Options(**options | {name: tuple(options[name]) for name in ("drop", "trust")})
        return cls(**stored | {"options": options, "files": tuple((name, path) for name, path in stored["files"])})


class QValues(NamedTuple):
    """The q-values by rank, and their digest."""

    q: np.ndarray
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it: each number to the bit."""
        return {"q": self.q.tolist(), "digest": self.digest}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(np.array(stored["q"], float), stored["digest"])


def block_of(stored: list[Any]) -> RowBlock:
    """A block after JSON."""
    number, file, first, rows, (start, end) = stored
    return RowBlock(number, file, first, rows, (start, end))


class Failure(NamedTuple):
    """An error of ours as plain values, which pass between processes: its class and what it was made of."""

    kind: str
    message: str
    argument: str | None
    value: Any
    hint: str | None
    skippable: bool = False

    @classmethod
    def of(cls, error: ThalwegError) -> "Failure":
        """The error's parts."""
        if isinstance(error, UserError):
            return cls("input", error.message, error.argument, error.value, error.hint, error.skippable)
        return cls("disk" if isinstance(error, DiskFull) else "work", str(error), None, None, None)

    def to_list(self) -> list[Any]:
        """What JSON holds of it."""
        plain = self.value is None or isinstance(self.value, str | int | float)
        return [*self._replace(value=self.value if plain else str(self.value))]

    def error(self) -> ThalwegError:
        """The error again."""
        if self.kind == "input":
            error = UserError(self.message, argument=self.argument, value=self.value, hint=self.hint)
            return error.replace(skippable=self.skippable)
        return DiskFull(self.message) if self.kind == "disk" else ThalwegError(self.message)


class Worker:
    """Makes parts. `scorer`: where the caller has loaded it already."""

    def __init__(self, job: Job, scorer: Scorer | None = None):
        self.job = job
        self.scorer = scorer or SCORERS[job.kind].load(job.options)
        if self.scorer.fingerprint != job.fingerprint:
            raise UserError("must hold the model of the plan, and has changed since", argument=job.options.run)
        self._source: Source | None = None

    def score(self, block: RowBlock) -> None:
        """Score a block into its part."""
        address, path = self.job.files[block.file]
        if self._source is None or self._source.address != address:
            self._source = source_of(address, path, header=self.job.options.header, known=self.scorer.known)
        rows = self.scorer.read(self._source, block)
        scores = self.scorer.score(rows, self._source, block)
        if len(scores.table) != block.rows:
            where = row_from_zero(block.first)
            text = f"must hold {block.rows} rows from {where} on, as counted, and gave {len(scores.table)}"
            raise UserError(text, argument=address, hint="has the file changed meanwhile?")
        parts.write(self.job.out, block, self.job.digest, address, scores, rows_digest(rows))

    def fill(self, block: RowBlock, filling: QValues) -> None:
        """Fill the q-values of a part in."""
        parts.fill(self.job.out, block, self.job.digest, filling.q, filling.digest)

    def do(self, block: RowBlock, filling: QValues | None) -> Failure | None:
        """Score or, with q-values, fill; what went wrong as values."""
        try:
            self.score(block) if filling is None else self.fill(block, filling)
        except ThalwegError as error:
            return Failure.of(error)
        return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: another number of them could change the last bits of a sum."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
