"""Batches: in which order their rows come.

Step k of a run takes the rows at positions k b … (k + 1) b - 1 of one endless sequence, the epochs' permutations laid
end to end, each drawn at the address (seed, "shuffle", epoch). So the step number is the loader's whole state, and each
epoch visits each row once.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.validate import as_float, as_floats


class Loader:
    """Batches of x (N, *) addressed by step; any step can be asked for at any time.

    `batch_size` counts rows over all ranks; a rank takes its own consecutive share of them. A batch is always
    full, and spans epochs where N is no multiple of it. uint8 pixels become float32 in [0, 1] a batch at a
    time; other rows keep their type, since float64 columns are rounded only when they are standardised.
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
            raise UserError("holds no rows", argument="x", hint="give at least one")
        if labels is not None and len(labels) != len(x):
            raise UserError(f"{len(labels)} of them for {len(x)} rows", argument="labels", hint="give one a row")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"must be a positive multiple of world_size={world_size}", argument="batch_size", value=batch_size
            )
        if not 0 <= rank < world_size:
            raise UserError(f"must be in 0..{world_size - 1}", argument="rank", value=rank)
        self.x, self.labels = x, labels
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self._orders: dict[int, Tensor] = {}  # the last two epochs' permutations

    def batch(self, step: int) -> tuple[Float[Tensor, "b *d"], Int[Tensor, " b"] | None]:
        """This rank's rows of the batch at `step` >= 0, in data units, and their labels."""
        rows = self.indices(step)
        return as_floats(as_float(self.x[rows])), None if self.labels is None else self.labels[rows]

    def indices(self, step: int) -> Int[Tensor, " b"]:
        """Which rows of x this rank takes at `step`."""
        if step < 0:
            raise UserError("must be zero or more", argument="step", value=step)
        share = self.batch_size // self.world_size
        position = step * self.batch_size + self.rank * share
        pieces = []
        while share > 0:
            epoch, offset = divmod(position, len(self.x))
            pieces.append(self._order(epoch)[offset : offset + share])
            position, share = position + len(pieces[-1]), share - len(pieces[-1])
        return torch.cat(pieces)

    def epoch(self, step: int) -> int:
        """The epoch in which the batch at `step` begins."""
        return step * self.batch_size // len(self.x)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = torch.randperm(len(self.x), generator=generator(self.seed, "shuffle", epoch))
        return self._orders[epoch]
