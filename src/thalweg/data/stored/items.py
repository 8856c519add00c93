"""A map-style data set of torch whose items are read when a step needs them."""

import hashlib
from collections.abc import Mapping
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from thalweg.core.errors import UserError, kind_of, one_line
from thalweg.data.stored.checks import ContentCheck
from thalweg.data.stored_rows import StoredRows
from thalweg.data.validate import arrange, as_floats, as_tensor


class ItemRows(StoredRows):
    """Rows of many items: all are read once, to be checked and hashed, and each again when it is needed.

    One item is read at a time, as its code may not be made for several threads. Item i must be the same each time.

    Args:
        data: Has `__len__` and `__getitem__`; its items are rows, or pairs of a row and a label.
        where: What messages call it.
    """

    def __init__(self, data: Any, where: str):
        self.data, self.where = data, where
        self._lock = Lock()
        first = self._units(self._raw(0)[None])
        self.shape, self.dtype = torch.Size([len(data), *first.shape[1:]]), first.dtype
        self.labels: list[Any] | None = [] if is_pair(data[0]) else None
        self._digest = self._checked()

    def read(self, rows: Tensor) -> Tensor:
        """Item by item."""
        with self._lock:
            items = [self._raw(i) for i in rows.tolist()]
        if not items:
            return torch.empty(0, *self.shape[1:], dtype=self.dtype)
        return self._units(torch.stack(items))

    def digest(self) -> str:
        """Of all items as they were at first."""
        return self._digest

    def _raw(self, i: int) -> Tensor:
        return row_of(self.data, i, self.where)[0]

    def _units(self, x: Tensor) -> Tensor:
        x = arrange(x.detach().cpu(), None, self.where)
        if x.ndim == 4:
            return x if x.dtype == torch.uint8 else x.to(torch.float32)
        return as_floats(x)

    def _checked(self) -> str:
        digest = hashlib.sha256(f"{tuple(self.shape)} {self.dtype}".encode())
        check = ContentCheck(len(self), "image" if self.ndim == 4 else "vector", self.where)
        for i in range(len(self)):
            row, label = row_of(self.data, i, self.where)
            x = self._units(row[None])
            if x.shape[1:] != self.shape[1:] or x.dtype != self.dtype:
                found = f"{tuple(self.shape[1:])} and {tuple(x.shape[1:])}"
                raise UserError(f"must have items of one shape and type; it has {found}", argument=f"{self.where}[{i}]")
            check.add(x)
            digest.update(x.contiguous().numpy().data.cast("B"))
            if self.labels is not None:
                self.labels.append(label)
        check.finish()
        return digest.hexdigest()


def is_pair(item: Any) -> bool:
    """Whether an item is a row and its label."""
    return isinstance(item, tuple | list) and len(item) == 2


def row_of(data: Any, i: int, where: str) -> tuple[Tensor, Any]:
    """The row of item i, and its label; None where it has none. UserError where the data set fails to give it."""
    try:
        item = data[i]
    except (ValueError, TypeError, IndexError, KeyError, OSError) as error:
        raise UserError(f"must give its items ({one_line(error)})", argument=f"{where}[{i}]") from error
    row, label = item if is_pair(item) else (item, None)
    if isinstance(row, tuple) and len(row) == 1:  # as of TensorDataset(x)
        row = row[0]
    if row is None or isinstance(row, Mapping | str | bytes):
        hint = "give tensors, or pairs (x, label)"
        raise UserError(f"must be numbers, and is {kind_of(row)}", argument=f"{where}[{i}]", hint=hint)
    return as_tensor(row, where=f"{where}[{i}]"), label
