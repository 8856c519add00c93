"""Which requests are taken: by what waits, in rows and in estimated seconds, and by their deadlines."""

from collections import deque
from collections.abc import Callable
from statistics import median

from thalweg.serve.engine.cost import Cost
from thalweg.serve.engine.job import Kind, Piece
from thalweg.serve.engine.rejected import Reason
from thalweg.serve.engine.waiting import LaneName, Waiting

INLINE = 0.0002  # seconds: below, handing a call to a thread and back costs as much as the call
LONE = 0.01  # seconds: the same while there is one connection, whose client waits for the answer anyway
PATIENCE = 0.2  # seconds that a request may have to wait, by estimate, or so many times its own cost if that is more:
FAIR = 4
FIRST_GUESS = 0.05  # seconds of a call or an item before any was seen
RECENT = 15


class Admission:
    """Estimates of time, and what follows from them.

    Args:
        waiting: What is in line.
        queue: Rows that may be, of which a request counts for half at most.
        clock: Seconds.
    """

    def __init__(self, waiting: Waiting, queue: int, clock: Callable[[], float]):
        self.waiting, self.queue, self.clock = waiting, queue, clock
        self.alone: Callable[[], bool] = lambda: False  # whether there is one client; the server says so
        self.costs: dict[str, Cost] = {}
        self._others: dict[LaneName, deque[float]] = {}  # seconds of recent calls and items

    def cheap(self, model: str, rows: int) -> bool:
        """Whether such a call is made on the event loop."""
        return self.costs[model](rows) <= (LONE if self.alone() else INLINE)

    def here(self, model: str, rows: int) -> bool:
        """Whether to make it there now: nothing else is computed."""
        return not self.waiting.rows and not self.waiting.taken and self.cheap(model, rows)

    def refusal(self, model: str, kind: Kind, rows: int, limit: float) -> tuple[Reason, float] | None:
        """Why such a request is not taken, and when to come back. What finds nothing waiting is always tried.

        A request counts for half the queue at most: a large one is taken while no more than half of it waits, and
        leaves room for others soon.
        """
        if limit <= 0 or (kind == "score" and self.costs[model].least(rows) > limit):
            return "deadline", 1.0
        if not self.waiting.rows:
            return None
        own, wait = self.seconds(model, kind, rows), self.wait(model, kind)
        room = min(rows, -(-self.queue // 2))
        if self.waiting.rows + room > self.queue or wait > max(PATIENCE, FAIR * own) or wait + own > limit:
            return "full", max(1.0, wait)
        return None

    def wait(self, model: str, kind: Kind) -> float:
        """Seconds until a newcomer's turn: what is computed, what is before it in its lane, as much of other lanes."""
        lanes, workers = dict(self.waiting.lanes()), self.waiting.at_once(model, kind)
        before = self._lane((model, kind), lanes.pop((model, kind), 0))
        if kind == "score" and self.waiting.count > workers:  # a worker that takes scores alone is never far
            lanes = {lane: rows for lane, rows in lanes.items() if lane[1] == "score"}
        others = sum(min(self._lane(lane, rows), before + self._piece(lane)) for lane, rows in lanes.items())
        return self._running((model, kind), workers) + (before + others) / workers

    def seconds(self, model: str, kind: Kind, rows: int) -> float:
        """Of a piece of work."""
        if kind == "score":
            return self.costs[model](rows)
        recent = self._others.get((model, kind))
        return median(recent) if recent else FIRST_GUESS

    def expected_seconds(self, piece: Piece) -> float:
        """Seconds of a piece that a worker takes; by any thread."""
        return self.seconds(piece.model, piece.kind, piece.rows)

    def took(self, piece: Piece, seconds: float) -> None:
        """Learn from a piece."""
        if piece.kind != "score":
            self._others.setdefault((piece.model, piece.kind), deque(maxlen=RECENT)).append(seconds)
        elif piece.model in self.costs:
            self.costs[piece.model].took(piece.rows, seconds)

    def _running(self, lane: LaneName, workers: int) -> float:
        """Seconds until a worker may begin with a lane, of which so many may compute at the same time."""
        own = [self._left(worker) for worker, (piece, _) in list(self.waiting.taken.items()) if piece.lane == lane]
        if len(own) >= workers:
            return min(own)
        return min(map(self._left, range(self.waiting.count if lane[1] == "score" else 1)))

    def _left(self, worker: int) -> float:
        """Seconds that are left of what a worker has taken."""
        taken = self.waiting.taken.get(worker)
        if taken is None:
            return 0.0
        piece, since = taken
        ahead = self.waiting.ahead.get(worker)
        left = max(0.0, self.expected_seconds(piece) - (self.clock() - since))
        return left if ahead is None else left + self.expected_seconds(ahead)

    def _piece(self, lane: LaneName) -> float:
        return self.seconds(*lane, self.waiting.batch.get(lane[0], 1))

    def _lane(self, lane: LaneName, rows: int) -> float:
        """Seconds that so many waiting rows take, in full calls."""
        return self._piece(lane) * rows / (self.waiting.batch.get(lane[0], 1) if lane[1] == "score" else 1)
