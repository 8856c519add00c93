"""Batches of rows, addressed by step; on another device the next step's rows are sent ahead.

Step k takes the rows at positions k b … (k + 1) b - 1 of the sequence of all epochs' permutations, each drawn at the
address (seed, "shuffle", epoch). So the step number is the loader's only state. Rows that are not in memory are read by
threads while earlier steps compute; which rows a step has does not depend on their number.
"""

from threading import Lock
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.core import check
from thalweg.core.device import send
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.read_ahead import ReadAhead
from thalweg.data.stored_rows import EpochOrder, StoredRows
from thalweg.data.validate import as_float, as_floats

MOST_WORKERS = 64


class Loader:
    """Batches of x (N, *) by step. A batch is always full, and spans epochs where N is no multiple of it.

    Args:
        x: The rows, in data units.
        labels: Their labels (N,).
        batch_size: Rows of a batch, over all ranks.
        seed: Seed of the permutations.
        rank: The rank, which takes its own consecutive share of each batch.
        world_size: Number of ranks.
        workers: Threads that read the rows of the next steps, where x is stored; 0: each step reads its own.
    """

    def __init__(
        self,
        x: Tensor | StoredRows,
        labels: Tensor | None = None,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 2,
    ) -> None:
        if len(x) == 0:
            raise UserError("must have one row or more", argument="x")
        if labels is not None and len(labels) != len(x):
            raise UserError(f"must be one a row; there are {len(labels)} for {len(x)} rows", argument="labels")
        if batch_size < 1 or batch_size % world_size:
            condition = f"must be a positive multiple of world_size={world_size}"
            raise UserError(condition, argument="batch_size", value=batch_size)
        check.whole("rank", rank, 0, world_size - 1)
        self.x, self.labels = x, labels
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        check.whole("data.workers", workers, 0, MOST_WORKERS)
        self.is_stored = isinstance(x, StoredRows)
        self._ahead = ReadAhead(self._read, workers) if self.is_stored and workers else None
        self._one_at_a_time = Lock()  # of the threads that read
        self._orders: dict[int, Tensor | EpochOrder] = {}  # the last two epochs' permutations

    def batch(self, step: int) -> tuple[Float[Tensor, "b *d"], Int[Tensor, " b"] | None]:
        """This rank's rows of the batch at `step` >= 0, in data units, and their labels."""
        rows, x = self._read(step) if self._ahead is None else self._ahead.get(step)
        return as_floats(as_float(x)), None if self.labels is None else self.labels[rows]

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        """Which rows a step has, and the rows as they are stored."""
        rows = self.indices(step)
        return rows, self.x[rows]

    def indices(self, step: int) -> Int[Tensor, " b"]:
        """Which rows of x this rank takes at `step`."""
        check.whole("step", step, 0)
        share = self.batch_size // self.world_size
        position = step * self.batch_size + self.rank * share
        pieces: list[Tensor] = []
        while share > 0:
            epoch, offset = divmod(position, len(self.x))
            pieces.append(self._order(epoch)[offset : offset + share])
            position, share = position + len(pieces[-1]), share - len(pieces[-1])
        return torch.cat(pieces)

    def _order(self, epoch: int) -> Tensor | EpochOrder:
        with self._one_at_a_time:
            if epoch not in self._orders:
                if len(self._orders) > 1:
                    del self._orders[min(self._orders)]
                self._orders[epoch] = self._shuffled(epoch)
            return self._orders[epoch]

    def _shuffled(self, epoch: int) -> Tensor | EpochOrder:
        if isinstance(self.x, StoredRows):
            return self.x.epoch(self.seed, epoch)
        return torch.randperm(len(self.x), generator=generator(self.seed, "shuffle", epoch))


class Prefetcher:
    """The batches on a device: while it computes a step, the rows of the next one are sent, and nobody waits for them.

    Args:
        batches: Has `batch(step)`, as `Loader` has.
        device: The device.
    """

    def __init__(self, batches: Any, device: torch.device):
        self.batches, self.device = batches, device
        self._sent: dict[int, tuple[Tensor, Tensor | None]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The rows and labels of a step, on the device."""
        rows = self._sent.pop(step, None) or self._send(step)
        self._sent = {step + 1: self._send(step + 1)}
        return rows

    def _send(self, step: int) -> tuple[Tensor, Tensor | None]:
        x, labels = self.batches.batch(step)
        return send(x, self.device), None if labels is None else send(labels, self.device)
