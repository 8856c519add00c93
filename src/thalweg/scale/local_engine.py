"""The engine of this process: one block after the other."""

from collections.abc import Iterator, Sequence

from thalweg.scale.plan import RowBlock
from thalweg.scale.worker import Failure, QValues, Worker, one_thread


class LocalEngine:
    """Makes parts in this process, with one thread as Ray's workers have, so that the bits are the same."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self.retried = 0

    def run(self, blocks: Sequence[RowBlock], filling: QValues | None) -> Iterator[Failure | None]:
        """Make the parts of blocks one by one; None each, or what went wrong."""
        with one_thread():
            for block in blocks:
                yield self.worker.do(block, filling)

    def close(self) -> None:
        """Nothing to end."""
