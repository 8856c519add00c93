"""Batches: what their rows must be, and in which order they come.

Rows are in data units: pixels uint8 or float in [0, 1], vectors real and finite. Step k of a run takes the
rows at positions k b … (k + 1) b - 1 of one endless sequence, the epochs' permutations laid end to end, each
drawn at the address (seed, "shuffle", epoch). So the step number is the loader's whole state, and each epoch
visits each row once.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator

Kind = Literal["image", "vector"]
LEAST_ROWS = 20


class Loader:
    """Batches of x (N, *) addressed by step; any step can be asked for at any time.

    `batch_size` counts rows over all ranks; a rank takes its own consecutive share of them. A batch is always
    full, and spans epochs where N is no multiple of it. uint8 pixels become float32 in [0, 1] a batch at a
    time.
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
            raise UserError("x: holds no rows: give at least one")
        if labels is not None and len(labels) != len(x):
            raise UserError(f"labels: {len(labels)} of them for {len(x)} rows: give one a row")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch_size={batch_size}: give a positive multiple of world_size={world_size}")
        if not 0 <= rank < world_size:
            raise UserError(f"rank={rank}: must lie in 0..{world_size - 1}")
        self.x, self.labels = x, labels
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self._orders: dict[int, Tensor] = {}  # the last two epochs' permutations

    def batch(self, step: int) -> tuple[Float[Tensor, "b *d"], Int[Tensor, " b"] | None]:
        """This rank's rows of the batch at `step` >= 0, as float32 in data units, and their labels."""
        rows = self.indices(step)
        return as_float(self.x[rows]).to(torch.float32), None if self.labels is None else self.labels[rows]

    def indices(self, step: int) -> Int[Tensor, " b"]:
        """Which rows of x this rank takes at `step`."""
        if step < 0:
            raise UserError(f"step={step}: steps count from 0")
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


def as_float(x: Tensor) -> Tensor:
    """Pixels as numbers: uint8 to float32 in [0, 1] by dividing by 255; anything else as it is."""
    return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x


def check_input(x: Tensor, shape: tuple[int, ...], kind: Literal["image", "vector"], *, where: str = "x") -> Tensor:
    """Rows of a Python caller as float32 in data units, or a UserError that starts with `where`."""
    return (check_images if kind == "image" else check_rows)(x, shape, where=where)


def check_images(x: Tensor, shape: tuple[int, ...] | None, *, where: str = "x") -> Tensor:
    """Images (N, *shape), uint8 or float in [0, 1], as float32 in [0, 1]; a UserError says what is wrong."""
    verify(x, shape, "image", where=where)
    return as_float(x).to(torch.float32)


def check_rows(x: Tensor, shape: tuple[int, ...] | None, *, where: str = "x") -> Tensor:
    """Finite real vectors (N, *shape) as float32; a UserError says what is wrong."""
    verify(x, shape, "vector", where=where)
    return x.to(torch.float32)


def require_trainable(x: Tensor, *, where: str = "x") -> None:
    """Refuse fewer rows than say anything about a density and still leave some to hold out."""
    if len(x) < LEAST_ROWS:
        rows = "1 row" if len(x) == 1 else f"{len(x)} rows"
        raise UserError(f"{where}: holds {rows}, training needs at least {LEAST_ROWS}: give more data")


def verify(x: Tensor, shape: tuple[int, ...] | None, kind: Kind, *, where: str) -> None:
    """Raise a UserError that starts with `where`, unless x is rows (N, *shape) of this kind in data units."""
    check_shape(x, shape, kind, where=where)
    if x.numel() == 0:
        raise UserError(f"{where}: shape {tuple(x.shape)} holds no data: give at least one row")
    if kind == "image" and not x.is_floating_point() and x.dtype not in (torch.uint8, torch.bool):
        raise UserError(f"{where}: pixels are {x.dtype}: give uint8 in 0..255 or float in [0, 1]")
    values = x.detach() if x.dtype in (torch.float32, torch.uint8) else x.detach().to(torch.float32)
    if values.is_floating_point() and not bool(values.isfinite().all()):
        bad = (~values.isfinite()).flatten(1).any(1).nonzero().flatten()
        raise UserError(
            f"{where}: {len(bad)} of {len(x)} rows hold NaN or infinity (in float32), "
            f"first at index {int(bad[0])}: drop or fill them"
        )
    if kind == "image" and values.is_floating_point():
        low, high = (float(v) for v in values.aminmax())
        if low < -1e-6 or high > 1 + 1e-6:
            move = "(x + 1) / 2" if -1 - 1e-6 <= low < 0 and high <= 1 + 1e-6 else "divide by 255"
            raise UserError(
                f"{where}: float pixels lie in [0, 1], uint8 in 0..255; "
                f"as float, these span [{low:g}, {high:g}]: {move}?"
            )


def check_shape(x: Tensor, shape: tuple[int, ...] | None, kind: Kind, *, where: str) -> None:
    """Raise a UserError that starts with `where`, unless x is real and of shape (N, *shape)."""
    if x.is_complex():
        raise UserError(f"{where}: holds complex numbers: give real ones")
    ndim = len(shape) if shape is not None else (3 if kind == "image" else 1)
    if x.ndim != ndim + 1 or (shape is not None and x.shape[1:] != shape):
        wanted = ", ".join(str(s) for s in shape) if shape is not None else ("C, H, W" if kind == "image" else "D")
        raise UserError(f"{where}: expected shape (N, {wanted}), got {tuple(x.shape)}{_hint(x, shape)}")


def _hint(x: Tensor, shape: tuple[int, ...] | None) -> str:
    """How to turn x into (N, *shape), where one move does it."""
    if shape is None:
        return ""
    got, size = tuple(x.shape), ", ".join(map(str, shape))
    moves = {
        ": add the batch axis, x[None]": got == shape,
        ": transpose it, x.T": len(shape) == 1 and len(got) == 2 and got[0] == shape[0],
        f": reshape it, x.reshape(-1, {size})": len(got) != len(shape) + 1 and math.prod(got[1:]) == math.prod(shape),
    }
    if len(shape) == 3 and len(got) == 4:
        c, h, w = shape
        moves[": channels come first, x.permute(0, 3, 1, 2)"] = got[1:] == (h, w, c)
        moves[": height comes before width, x.transpose(2, 3)"] = got[1:] == (c, w, h)
        moves[f": {got[1]} channels where {c} are expected, convert the colours"] = got[2:] == (h, w)
        moves[f": resize to {h} x {w} pixels"] = got[1] == c
    return next((text for text, fits in moves.items() if fits), "")


def arrange(x: Tensor, shape: tuple[int, ...] | None, where: str) -> Tensor:
    """Bring images to (N, C, H, W) and a lone row to (1, ...), where that can be told without a guess."""
    if shape is not None:
        if tuple(x.shape) == shape or (len(shape) == 3 and tuple(x.shape) == shape[1:] and shape[0] == 1):
            return x.reshape(1, *shape)
        if x.ndim == 4 and tuple(x.shape[1:]) != shape and (x.shape[3], x.shape[1], x.shape[2]) == shape:
            return x.permute(0, 3, 1, 2).contiguous()
        return x[:, None] if x.ndim == 3 and len(shape) == 3 else x
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        if x.shape[3] not in (1, 3):
            raise UserError(f"{where}: shape {tuple(x.shape)} no axis of 1 or 3 channels: give (N, C, H, W)")
        return x.permute(0, 3, 1, 2).contiguous()
    if x.ndim not in (2, 4):
        raise UserError(f"{where}: {x.ndim}-D array: give rows (N, D) or images (N, H, W) or (N, C, H, W)")
    return x
