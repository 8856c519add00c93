"""Rows that a Python caller has in memory as the data set of a run: tensors, arrays, frames, torch data sets."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from thalweg.core.errors import UserError, kind_of
from thalweg.data import stored_rows
from thalweg.data.catalog import Dataset, split, split_texts, texts_dataset
from thalweg.data.columns.layout import Layout
from thalweg.data.frames import is_frame
from thalweg.data.stored.items import ItemRows, row_of
from thalweg.data.stored_rows import HELD_OUT_NUMBERS, StoredRows, some_rows
from thalweg.data.texts import given_texts, is_texts, refuse_containers, require_alike
from thalweg.data.texts import require_trainable as require_trainable_texts
from thalweg.data.validate import arrange, as_floats, as_tensor, require_trainable, verify

HELD_OUT = 0.1  # of the rows, where the caller does not say
NAME = "rows in memory"


def given_dataset(data: Any, labels: Any = None, *, held_out: Any = None, seed: int = 0) -> Dataset:
    """Rows in memory, checked, shuffled and split.

    Args:
        data: A tensor or array (N, D), images (N, C, H, W) or (N, H, W), a frame of numbers (pandas, polars, Arrow), or
            a map-style data set of torch whose items are rows, or pairs of a row and a label; or texts: a list, a
            tuple, an array (N,) or a Series of str.
        labels: Whole numbers (N,).
        held_out: The share to hold out, 1/10 if not given; or the rows themselves, in the form of `data`. With labels:
            a pair of rows and labels.
        seed: Seed of the split.
    """
    refuse_containers(data, "data", "a list of str, or rows of numbers")
    if is_texts(data):
        return _texts(data, labels, held_out, seed)
    x, found, layout = _rows(data, "data", None)
    labels = _labels(labels, found, len(x), "labels")
    source = f"{kind_of(data)} of {' x '.join(map(str, x.shape))}"
    if held_out is None or isinstance(held_out, int | float):
        return split(x, labels, name=NAME, source=source, held_out=_share(held_out), seed=seed, layout=layout)
    require_trainable(x, where="data")
    rest, rest_labels = _held_out(held_out, x, labels, layout)
    return Dataset(
        name=NAME,
        source=f"{source}: {len(x):,} to train on, {len(rest):,} given to hold out",
        kind="image" if x.ndim == 4 else "vector",
        train=x,
        held_out=rest,
        train_labels=labels,
        held_out_labels=rest_labels,
        layout=layout,
    )


def _share(held_out: Any) -> float:
    share = HELD_OUT if held_out is None else held_out
    if isinstance(share, bool) or not 0 < share < 1:
        text = "must be a share in (0, 1), or the rows themselves"
        raise UserError(text, argument="held_out", value=held_out)
    return share


def _texts(data: Any, labels: Any, held_out: Any, seed: int) -> Dataset:
    """Texts in memory; `held_out` a share, or the texts themselves."""
    if labels is not None:
        raise UserError("is for images and rows of numbers; texts have none", argument="labels", hint="leave it out")
    texts = given_texts(data, "data")
    source = f"{kind_of(data)} of {len(texts):,} texts"
    if held_out is None or isinstance(held_out, int | float):
        return split_texts(texts, name=NAME, source=source, held_out=_share(held_out), seed=seed)
    require_trainable_texts(texts, "data")
    rest = given_texts(held_out, "held_out")
    if not rest:
        raise UserError("must have one text or more", argument="held_out")
    require_alike(texts, None, "data")
    require_alike(rest, None, "held_out", usual_of=texts)
    return texts_dataset(texts, rest, name=NAME, source=source)


def is_in_memory(data: Any) -> bool:
    """Whether these are rows, and not a name or a path."""
    return not isinstance(data, str | bytes) and not hasattr(data, "__fspath__")


def _held_out(
    given: Any, x: Tensor | StoredRows, labels: Tensor | None, layout: Layout
) -> tuple[Tensor, Tensor | None]:
    rows, own = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    rest, found, _ = _rows(rows, "held_out", layout)
    rest = some_rows(rest, len(rest), HELD_OUT_NUMBERS)
    own = _labels(own, found, len(rest), "held_out")
    if rest.shape[1:] != x.shape[1:] or rest.dtype != x.dtype:
        text = f"must be rows of {tuple(x.shape[1:])} in {x.dtype}, as the data are"
        raise UserError(f"{text}; they are {tuple(rest.shape[1:])} in {rest.dtype}", argument="held_out")
    if labels is not None and own is None:
        raise UserError("must be a pair of rows and labels, as the data have labels", argument="held_out")
    return rest, None if labels is None else own


def _rows(data: Any, where: str, layout: Layout | None) -> tuple[Tensor | StoredRows, Tensor | None, Layout]:
    """(rows in data units, labels where the items have them, the columns of a frame)."""
    if is_frame(data):
        if layout is not None:
            values, known = layout.encode(data, where=where), layout
        else:
            known, values = Layout.fit_encode(data, where=where)
        return _checked(torch.from_numpy(values), where), None, known
    if isinstance(data, TorchDataset) or (
        hasattr(data, "__getitem__") and not hasattr(data, "__array__") and _is_map(data)
    ):
        return *_items(data, where), Layout()
    return _checked(as_tensor(data, where=where), where), None, Layout()


def _is_map(data: Any) -> bool:
    """Whether this is a data set of torch in all but its class: lists are arrays."""
    return hasattr(data, "__len__") and not isinstance(data, list | tuple | dict | Tensor)


def _items(data: Any, where: str) -> tuple[Tensor | StoredRows, Tensor | None]:
    """The rows, and the labels, of a map-style data set; read once, in order, and kept unless they are many."""
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        hint = "give one with __len__ and __getitem__"
        raise UserError(f"must be a map-style data set; it is {kind_of(data)}", argument=where, hint=hint)
    if len(data) == 0:
        raise UserError("must have one row or more", argument=where)
    first, label = row_of(data, 0, where)
    paired = label is not None
    if len(data) * first.nbytes > stored_rows.KEPT_BYTES:
        stored = ItemRows(data, where)
        return stored, None if stored.labels is None else _labels(stored.labels, None, len(stored), where)
    pairs = [row_of(data, i, where) for i in range(len(data))]
    sizes = {tuple(row.shape) for row, _ in pairs}
    if len(sizes) > 1:
        found = ", ".join(map(str, sorted(sizes)[:3]))
        raise UserError(f"must have items of one shape; it has {found}", argument=where, hint="resize them")
    x = _checked(torch.stack([row for row, _ in pairs]), where)
    return x, _labels([label for _, label in pairs], None, len(x), where) if paired else None


def _checked(x: Tensor, where: str) -> Tensor:
    """Rows or images in data units."""
    x = arrange(x.detach().cpu(), None, where)
    kind: Literal["image", "vector"] = "image" if x.ndim == 4 else "vector"
    verify(x, None, kind, where=where)
    if kind == "vector":
        return as_floats(x)
    return x if x.dtype == torch.uint8 else x.to(torch.float32)


def _labels(given: Any, found: Tensor | None, n: int, where: str) -> Tensor | None:
    if given is None:
        return found
    labels = as_tensor(given, where=where).detach().cpu()
    if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        text = f"must be whole numbers ({n},), one a row; they are {tuple(labels.shape)} in {labels.dtype}"
        raise UserError(text, argument=where)
    return labels.to(torch.int64)
