"""What waits for a worker, and what it takes next: fair among models and kinds of work, full calls, no timer.

Each model has a lane for scores, one for other calls and one for items of streams. A free worker serves the lane that
has had the least time so far, and takes from it as many waiting rows as one call may have. So a lone request starts at
once, and what comes while a call runs shares the next one. A request of more rows than a call has goes in pieces, and
to the end of its lane after each.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from thalweg.serve.engine.job import Job, Kind, Piece, Signature

LaneName = tuple[str, Kind]
Group = OrderedDict[Job, None]


class Lane:
    """Work of one kind of one model; jobs of one group may share a call."""

    def __init__(self) -> None:
        self.groups: dict[Signature | int, Group] = {}
        self.used = 0.0  # seconds of a worker's time that it has had
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
    """All lanes: the event loop fills them, the worker empties them.

    Args:
        batch: Rows that a call may have, by model; filled in when they are measured.
        clock: Seconds.
    """

    def __init__(self, batch: Mapping[str, int], clock: Callable[[], float]):
        self.batch, self.clock = batch, clock
        self.rows = 0
        self.taken: tuple[Piece, float] | None = None  # what is computed, and since when
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

    def take(self) -> tuple[Piece | None, list[Job]]:
        """What to compute now, and the jobs that were late and are no longer in line."""
        late: list[Job] = []
        with self._lock:
            now = self.clock()
            while self._active:
                lane = min(self._active.values(), key=lambda lane: lane.used)
                piece = self._next(lane, now, late)
                if piece is not None:
                    self.taken = piece, now
                    self._served = max(self._served, lane.used)
                    return piece, late
        return None, late

    def used(self, piece: Piece, seconds: float) -> None:
        """A piece is finished: charge its lane for the time."""
        with self._lock:
            self.taken = None
            self._lanes[_lane(piece.jobs[0][0])].used += seconds

    def release(self) -> None:
        """The worker that took the last piece has ended."""
        with self._lock:
            self.taken = None

    def lanes(self) -> list[tuple[LaneName, int]]:
        """Rows that wait, by lane."""
        with self._lock:
            return [(name, lane.rows) for name, lane in self._active.items()]

    def _add(self, job: Job, direction: int) -> None:
        name = _lane(job)
        lane = self._lanes.setdefault(name, Lane())
        if name not in self._active:  # time that a lane did not ask for is no credit
            lane.used = max(lane.used, self._served)
            self._active[name] = lane
        job.order = direction * next(self._order)
        lane.add(job, self._share(job))

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

    def _next(self, lane: Lane, now: float, late: list[Job]) -> Piece | None:
        """The rows of one call; None if all of the lane's jobs were late."""
        while lane.groups:
            jobs, rows, group = [], 0, lane.head()
            most = 1
            while group and rows < most:
                job = next(iter(group))
                if job.deadline <= now:
                    self._remove(job)
                    self.rows -= job.size - job.taken
                    late.append(job)
                    continue
                most = self.batch.get(job.model, 1) if job.kind == "score" else 1
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
