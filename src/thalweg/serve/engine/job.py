"""A request as the engine keeps it, and the piece of work that a worker takes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Kind = Literal["score", "call", "stream"]
Signature = tuple[tuple[str, str, tuple[int, ...]], ...]
Gone = Callable[[], Awaitable[bool]]


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """A request that waits or is computed.

    Args:
        model: The model's name.
        kind: `score`: rows, which share a call with those of others; `call`, `stream`: a piece of other work.
        size: Rows; 1 of other work.
        deadline: Until when the answer is of use, on the engine's clock.
        future: What the caller awaits.
        gone: Whether the caller's client has left.
        inputs, alpha, signature: Of a score. No signature: it is scored alone.
        work: Of other kinds.
        alone: It is scored alone, since a call that it shared has failed.
        tries: Workers that were lost with it.
        taken: Rows that a worker has taken so far.
        parts: (start, stop, their answer), in the order of their ends.
        order: Its place in line.
        left: When its caller was seen to have gone.
        done: Nobody waits for it any more.
    """

    model: str
    kind: Kind
    size: int
    deadline: float
    future: asyncio.Future[Any]
    gone: Gone | None = None
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    alpha: float | None = None
    signature: Signature | None = None
    work: Callable[[], Any] | None = None
    alone: bool = False
    tries: int = 0
    taken: int = 0
    parts: list[tuple[int, int, dict[str, np.ndarray]]] = field(default_factory=list)
    order: int = 0
    left: float | None = None
    done: bool = False


class Piece(NamedTuple):
    """What a worker computes at once: rows start … stop of each job."""

    jobs: list[tuple[Job, int, int]]

    @property
    def model(self) -> str:
        return self.jobs[0][0].model

    @property
    def lane(self) -> tuple[str, Kind]:
        return self.model, self.kind

    @property
    def kind(self) -> Kind:
        return self.jobs[0][0].kind

    @property
    def rows(self) -> int:
        return sum(stop - start for _, start, stop in self.jobs)

    @property
    def work(self) -> Callable[[], Any] | None:
        return self.jobs[0][0].work


def signature_of(rows: Mapping[str, np.ndarray]) -> tuple[Signature | None, int]:
    """(names, types and shapes of a row; rows). No signature where the inputs do not agree on a number of rows."""
    sizes = {value.shape[0] if value.ndim else -1 for value in rows.values()}
    if len(sizes) != 1 or (size := sizes.pop()) < 1:
        return None, 1
    return tuple(sorted((name, value.dtype.str, value.shape[1:]) for name, value in rows.items())), size


def joined(piece: Piece) -> tuple[Mapping[str, np.ndarray], Any]:
    """(inputs, alpha) of one call for all jobs of a piece; alpha is one a row where the jobs' differ."""
    first, start, stop = piece.jobs[0]
    if len(piece.jobs) == 1:
        whole = (start, stop) == (0, first.size)
        inputs = first.inputs if whole else {name: value[start:stop] for name, value in first.inputs.items()}
        return inputs, first.alpha
    inputs = {name: np.concatenate([job.inputs[name][a:b] for job, a, b in piece.jobs]) for name in first.inputs}
    alphas = [job.alpha for job, _, _ in piece.jobs]
    if all(alpha == alphas[0] for alpha in alphas):
        return inputs, alphas[0]
    each = [np.nan if alpha is None else alpha for alpha in alphas]  # NaN: the model's own
    return inputs, np.repeat(np.array(each, float), [stop - start for _, start, stop in piece.jobs])


def split(piece: Piece, found: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The answer of a call by jobs. ValueError unless each output has the call's rows."""
    odd = {name: len(value) for name, value in found.items() if len(value) != piece.rows}
    if odd:
        raise ValueError(f"outputs of another number of rows than {piece.rows}: {odd}")
    if len(piece.jobs) == 1:
        return [dict(found)]
    ends = np.cumsum([stop - start for _, start, stop in piece.jobs]).tolist()
    places = zip([0, *ends], ends, strict=False)
    return [{name: value[a:b] for name, value in found.items()} for a, b in places]


def whole(job: Job) -> dict[str, np.ndarray] | None:
    """The answer for all rows of a job, by its parts; None where some are missing.

    Workers may compute parts at the same time, so that a later one ends first, and some rows twice where one was lost.
    """
    if sum(stop - start for start, stop, _ in job.parts) < job.size:
        return None
    found: list[dict[str, np.ndarray]] = []
    end = 0
    for start, stop, answer in sorted(job.parts, key=lambda part: part[:2]):
        if start > end:
            return None
        if stop > end:
            found.append({name: value[end - start :] for name, value in answer.items()} if start < end else answer)
            end = stop
    if end < job.size:
        return None
    return found[0] if len(found) == 1 else {n: np.concatenate([one[n] for one in found]) for n in found[0]}
