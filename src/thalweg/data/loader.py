"""Batches of rows, addressed by step; on another device the next step's rows are sent ahead.

Step k takes the rows at positions k b … (k + 1) b - 1 of the sequence of all epochs' permutations, each drawn at the
address (seed, "shuffle", epoch). So the step number is the loader's only state.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.core import check
from thalweg.core.device import send
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.validate import as_float, as_floats


class Loader:
    """Batches of x (N, *) by step. A batch is always full, and spans epochs where N is no multiple of it.

    Args:
        x: The rows, in data units.
        labels: Their labels (N,).
        batch_size: Rows of a batch, over all ranks.
        seed: Seed of the permutations.
        rank: The rank, which takes its own consecutive share of each batch.
        world_size: Number of ranks.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
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
        self._orders: dict[int, Tensor] = {}  # the last two epochs' permutations

    def batch(self, step: int) -> tuple[Float[Tensor, "b *d"], Int[Tensor, " b"] | None]:
        """This rank's rows of the batch at `step` >= 0, in data units, and their labels."""
        rows = self.indices(step)
        return as_floats(as_float(self.x[rows])), None if self.labels is None else self.labels[rows]

    def indices(self, step: int) -> Int[Tensor, " b"]:
        """Which rows of x this rank takes at `step`."""
        check.whole("step", step, 0)
        share = self.batch_size // self.world_size
        position = step * self.batch_size + self.rank * share
        pieces = []
        while share > 0:
            epoch, offset = divmod(position, len(self.x))
            pieces.append(self._order(epoch)[offset : offset + share])
            position, share = position + len(pieces[-1]), share - len(pieces[-1])
        return torch.cat(pieces)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = torch.randperm(len(self.x), generator=generator(self.seed, "shuffle", epoch))
        return self._orders[epoch]


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
