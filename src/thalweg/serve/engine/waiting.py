"""What waits for the workers, and what one takes next: fair among models and kinds of work, full calls, no timer.

Each model has a lane for scores, one for other calls and one for items of streams. A free worker serves the lane that
has had the least time so far, and takes from it as many waiting rows as one call may have. So a lone request starts at
once, and what comes while a call runs shares the next one. A request of more rows than a call has goes in pieces, and
to the end of its lane after each. Workers beside the first take scores alone. Where one computes scores of a model,
another begins with them where several rows wait: small calls cost more a row.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from thalweg.serve.engine.job import Job, Kind, Piece, Signature

FEW = 16  # what waits is less than a call by this factor: it waits for the worker that computes,
STALLED = 0.2  # seconds, but not for one whose call takes longer
LaneName = tuple[str, Kind]
Group = OrderedDict[Job, None]


class Lane:
    """Work of one kind of one model; jobs of one group may share a call."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.groups: dict[Signature | int, Group] = {}
        self.used = 0.0  # seconds of a worker's time that it has had
        self.answered = 0  # rows of the call that was finished last
        self.rows = 0  # that wait, where a job counts for one call at most: what a newcomer waits for

    def add(self, job: Job, share: int) -> None:
        """At the end of its group."""
        self.groups.setdefault(_group(job), OrderedDict())[job] = None
        self.rows += share

    def discard(self, job: Job, share: int) -> bool:
        """Whether it was there."""
        key = _group(job)
        group = self.groups.get(key)
        if group is None or job not in group:
            return False
        del group[job]
        if not group:
            del self.groups[key]
        self.rows -= share
        return True

    def head(self) -> Group:
        """The group of the job that is first in line."""
        return min(self.groups.values(), key=lambda group: next(iter(group)).order)


class Waiting:
    """All lanes: the event loop fills them, the workers empty them.

    Args:
        batch: Rows that a call may have, by model; filled in when they are measured.
        workers: How many compute scores at the same time, by model; 1 of one that is not named.
        clock: Seconds.
    """

    def __init__(self, batch: Mapping[str, int], workers: Mapping[str, int], clock: Callable[[], float]):
        self.batch, self.workers, self.clock = batch, workers, clock
        self.rows = 0
        self.count = 1  # workers
        self.taken: dict[int, tuple[Piece, float]] = {}  # what is computed, and since when, by the worker's number
        self.ahead: dict[int, Piece] = {}  # what a worker computes after that
        self._lanes: dict[LaneName, Lane] = {}  # of every model that was asked for, for their `used`
        self._active: dict[LaneName, Lane] = {}
        self._served = 0.0  # `used` of the lane that was served last
        self._lock = threading.Lock()
        self._order = itertools.count(1)

    def add(self, job: Job, *, first: bool = False) -> None:
        """Put a job in line; `first`: before all others."""
        with self._lock:
            self._add(job, -1 if first else 1)
            self.rows += job.size - job.taken

    def discard(self, job: Job) -> None:
        """Take a job out of line, if it is there."""
        with self._lock:
            if self._remove(job):
                self.rows -= job.size - job.taken

    def take(
        self, worker: int = 0, *, scores_only: bool = False, expected_seconds: float = 0.0
    ) -> tuple[Piece | None, list[Job]]:
        """What a worker is to compute now, or after what it computes, and the jobs that were late and are out of line.

        With `scores_only`, nothing else. `expected_seconds`: of what it computes.
        """
        late: list[Job] = []
        with self._lock:
            now = self.clock()
            used = self._used(worker, expected_seconds)
            while lanes := [lane for name, lane in self._active.items() if self._offered(name, lane, worker)]:
                lane = min(lanes, key=used)
                if scores_only and lane.kind != "score":
                    break
                piece = self._next(lane, now, late, worker)
                if piece is not None:
                    if worker in self.taken:
                        self.ahead[worker] = piece
                    else:
                        self.taken[worker] = piece, now
                    self._served = max(self._served, used(lane))
                    return piece, late
        return None, late

    def at_once(self, model: str, kind: Kind) -> int:
        """How many workers do such work: of other work than scores, the first alone."""
        return self.workers.get(model, 1) if kind == "score" else 1

    def offered(self, worker: int) -> bool:
        """Whether there is work that this worker should take; not while it computes."""
        with self._lock:
            free = worker not in self.taken
            return free and any(self._offered(name, lane, worker) for name, lane in self._active.items())

    def running_longer_than(self, seconds: float) -> dict[int, float]:
        """Workers that compute one piece for longer than this, by their numbers, and for how long."""
        with self._lock:
            now = self.clock()
            return {worker: now - since for worker, (_, since) in self.taken.items() if now - since > seconds}

    def finished(self, worker: int, piece: Piece, seconds: float) -> None:
        """A piece is finished: charge its lane for the time. What was taken ahead is computed now."""
        with self._lock:
            self.taken.pop(worker, None)
            if worker in self.ahead:
                self.taken[worker] = self.ahead.pop(worker), self.clock()
            lane = self._lanes[piece.lane]
            lane.used += seconds
            lane.answered = piece.rows

    def release(self, worker: int) -> list[Piece]:
        """A worker has ended: what it had taken."""
        with self._lock:
            found = self.taken.pop(worker, (None,))[0], self.ahead.pop(worker, None)
            return [piece for piece in found if piece is not None]

    def lanes(self) -> list[tuple[LaneName, int]]:
        """Rows that wait, by lane."""
        with self._lock:
            return [(name, lane.rows) for name, lane in self._active.items()]

    def _used(self, worker: int, expected: float) -> Callable[[Lane], float]:
        """What a lane has had, with what this worker computes of it, for which it is not charged so far."""
        computed = self._lanes[self.taken[worker][0].lane] if worker in self.taken else None
        return lambda lane: lane.used + (expected if lane is computed else 0.0)

    def _add(self, job: Job, direction: int) -> None:
        name = _lane(job)
        lane = self._lanes.setdefault(name, Lane(job.kind))
        if name not in self._active:  # time that a lane did not ask for is no credit
            lane.used = max(lane.used, self._served)
            self._active[name] = lane
        job.order = direction * next(self._order)
        lane.add(job, self._share(job))

    def _most(self, job: Job, worker: int) -> int:
        """Rows of the next call, at least half a call: a worker's share of what waits and is computed.

        One worker alone takes half of what waits and is computed, or was just then, as those clients ask again: so
        calls are alike, and none is waited for longer than another. It does not cut a request for that.
        """
        if job.kind != "score":
            return 1
        call, workers = self.batch.get(job.model, 1), self.at_once(job.model, job.kind)
        name, lane = _lane(job), self._active[_lane(job)]
        taken = sum(piece.rows for piece, _ in self.taken.values() if piece.lane == name)
        if workers == 1:
            share = max(job.size - job.taken, -(-(lane.rows + (taken or lane.answered)) // 2))
        else:
            share = -(-(lane.rows + taken) // workers)
        return max(-(-call // 2), min(call, share))

    def _offered(self, name: LaneName, lane: Lane, worker: int) -> bool:
        """Whether a worker should take of a lane: fewer compute of it than may, and several rows wait or none does."""
        if name[1] != "score":
            return worker == 0
        others = [taken for other, taken in self.taken.items() if other != worker]
        computed = sum(piece.lane == name and self.clock() - since < STALLED for piece, since in others)
        few = FEW * lane.rows < self.batch.get(name[0], 1)
        return computed < (1 if few else self.at_once(*name))

    def _remove(self, job: Job) -> bool:
        name = _lane(job)
        lane = self._active.get(name)
        if lane is None or not lane.discard(job, self._share(job)):
            return False
        if not lane.groups:
            del self._active[name]
        return True

    def _share(self, job: Job) -> int:
        return min(job.size, self.batch.get(job.model, 1))

    def _next(self, lane: Lane, now: float, late: list[Job], worker: int) -> Piece | None:
        """The rows of one call; None if all of the lane's jobs were late."""
        while lane.groups:
            jobs, rows, group = [], 0, lane.head()
            most = 0
            while group and (not most or rows < most):
                job = next(iter(group))
                if job.deadline <= now:
                    self._remove(job)
                    self.rows -= job.size - job.taken
                    late.append(job)
                    continue
                most = most or self._most(job, worker)
                part = min(job.size - job.taken, most)
                if rows and rows + part > most:
                    break
                self._remove(job)
                jobs.append((job, job.taken, job.taken + part))
                job.taken += part
                rows += part
                self.rows -= part
                if job.taken < job.size:
                    self._add(job, 1)
            if jobs:
                return Piece(jobs)
        return None


def _lane(job: Job) -> LaneName:
    return job.model, job.kind


def _group(job: Job) -> Signature | int:
    """What jobs of one lane that may be in one call have in common."""
    if job.kind != "score":
        return ()
    return id(job) if job.alone or job.signature is None else job.signature
