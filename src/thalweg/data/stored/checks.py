"""The checks of `data.validate`, over rows that come a block at a time."""

import torch
from torch import Tensor

from thalweg.data.validate import Kind, refuse_black, refuse_not_finite, refuse_pixels, verify


class ContentCheck:
    """Whether all rows are finite in float32, and pixels in [0, 1]; told at the end, of all rows together.

    Args:
        num_rows: How many rows there are.
        kind: What they are.
        where: What messages call them.
    """

    def __init__(self, num_rows: int, kind: Kind, where: str):
        self.num_rows, self.where = num_rows, where
        self.kind: Kind = kind
        self.seen, self.num_bad, self.first_bad = 0, 0, 0
        self.low, self.high = 0.0, 0.0
        self.largest, self.count, self.total = 0, 0, 0  # of pixels in bytes

    def add(self, x: Tensor) -> None:
        """The next rows (B, *). UserError at once for a wrong type or shape."""
        if x.dtype == torch.uint8 and self.kind == "image":
            self.largest = max(self.largest, int(x.max()))
            self.count, self.total = self.count + int(x.count_nonzero()), self.total + x.numel()
            self.seen += len(x)
            return
        if not x.is_floating_point():
            verify(x, None, self.kind, where=self.where)
            self.seen += len(x)
            return
        values = x.to(torch.float32).flatten(1)
        finite = values.isfinite().all(1)
        if not bool(finite.all()):
            self.first_bad = self.first_bad if self.num_bad else self.seen + int((~finite).nonzero()[0])
            self.num_bad += int((~finite).sum())
            values = values[finite]
        if self.kind == "image" and values.numel():
            low, high = (float(v) for v in values.aminmax())
            self.low, self.high = min(self.low, low), max(self.high, high)
        self.seen += len(x)

    def finish(self) -> None:
        """UserError about the rows, where there is something wrong with them."""
        if self.num_bad:
            refuse_not_finite(self.num_bad, self.num_rows, self.first_bad, self.where)
        if self.kind == "image":
            refuse_black(self.largest, self.count, self.total, self.where)
            refuse_pixels(self.low, self.high, self.where)
