"""Named data sets and files as one thing: training rows, held-out rows, and a sentence that says which data
these are.

The split is a function of (data, seed): rows are shuffled at the address (seed, "split"), and where there are
labels each class gives the same share. Test sets that ship with a set are never read; they are for final
figures.
"""

import difflib
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from thalweg.core import check
from thalweg.core.config import names_class, type_name
from thalweg.core.errors import UserError
from thalweg.data import texts as text_rows
from thalweg.data.alphabet import Alphabet, with_room
from thalweg.data.columns.layout import Layout
from thalweg.data.file_digests import FileDigests
from thalweg.data.files import is_table, read_labels, read_rows
from thalweg.data.formats.images import is_image
from thalweg.data.image_folders import read_images
from thalweg.data.labelled_tables import read_table
from thalweg.data.options import DataOptions
from thalweg.data.sets.base import LocatedSet, NamedSet, RawData, named_sets, set_at
from thalweg.data.splitting import split_rows, split_stored, split_tensor
from thalweg.data.stored.hub import PREFIX, read_hub
from thalweg.data.stored.opening import stored_at
from thalweg.data.stored_rows import ColumnSubset, StoredRows
from thalweg.data.validate import Kind, as_float, require_trainable

__all__ = ["Dataset", "as_float", "load", "split", "split_texts"]
HELD_OUT = 0.1  # of the rows of a path


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Rows in data units, shuffled and split: images (N, C, H, W) uint8 or float32, rows (N, D), or codes (N, L).

    `layout` has the columns of the table that the rows were read from, `alphabet` what the codes of texts mean.
    """

    name: str
    source: str  # one sentence for humans: which data these are, and how many of them
    kind: Kind
    train: Tensor | StoredRows  # shuffled, unless they stay where they are stored
    held_out: Tensor
    train_labels: Tensor | None  # int64 (N,)
    held_out_labels: Tensor | None
    layout: Layout = field(default_factory=Layout)
    alphabet: Alphabet | None = None  # of texts
    class_names: tuple[str, ...] = ()  # of the labels 0, 1, …, where the data name them
    notes: tuple[str, ...] = ()  # lines for people about how the data were read, such as what was left out
    files: FileDigests | None = None  # of the files that they lie in, where they are many

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row: (C, H, W), (D,) or, of texts, (L,)."""
        return tuple(self.train.shape[1:])

    @property
    def energy_shape(self) -> tuple[int, ...]:
        """The shape that an energy of these data is built with, in model units: (L, K) of texts, else that of a row."""
        return self.shape if self.alphabet is None else (*self.shape, self.alphabet.num_states)

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, two or more; None where labels are not 0, 1, …, without a gap."""
        if self.train_labels is None or self.held_out_labels is None:
            return None
        found = torch.cat([self.train_labels, self.held_out_labels]).unique()
        num = len(self.class_names) or len(found)
        return num if num > 1 and int(found[0]) >= 0 and int(found[-1]) < num else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over shapes, dtypes and bytes of `train` and `held_out`, and over the letters of texts."""
        letters = "" if self.alphabet is None else self.alphabet.letters
        return _digest(self.train, self.held_out, more=letters.encode())

    @cached_property
    def label_fingerprint(self) -> str | None:
        """The same over both parts' labels; None where there are none."""
        if self.train_labels is None or self.held_out_labels is None:
            return None
        return _digest(self.train_labels, self.held_out_labels)


def _digest(*parts: Tensor | StoredRows, more: bytes = b"") -> str:
    digest = hashlib.sha256(more)
    for x in parts:
        digest.update(f"{tuple(x.shape)} {x.dtype}".encode())
        if isinstance(x, StoredRows):
            digest.update(x.digest().encode())
            continue
        digest.update(x.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def load(name: str, options: DataOptions | None = None, *, seed: int = 0) -> Dataset:
    """A named set (`data.sets`), any path that `files.read_rows` reads, or a .txt of texts, shuffled and split.

    Args:
        name: The set, the path, or the class of a set in a trusted package, `my_plugin.rings:Rings`.
        options: How the data are read and split, `DataOptions(limit=500)`. UserError for one that has no effect on
            these data.
        seed: Seed of the split, and of a set that is generated.
    """
    if not name:
        raise UserError("must not be empty", argument="data", hint="give a name or a path; . is the working folder")
    options = options or DataOptions()
    if _is_text(name):
        return _texts(name, options, seed)
    rows = _rows(name, options, seed)
    x, layout = rows.x, rows.layout
    if options.targets:
        layout, order = layout.with_last(options.targets, name)
        x = ColumnSubset(x, order) if isinstance(x, StoredRows) else x[:, order]
    return split(
        x,
        rows.labels,
        name=name,
        source=rows.what,
        held_out=rows.share if options.held_out is None else options.held_out,
        seed=seed,
        limit=options.limit,
        layout=layout,
        class_names=rows.class_names,
        notes=rows.notes,
        files=rows.files,
    )


def refuse_both(name: str, options: DataOptions) -> None:
    """UserError for the name of a set where a file or folder of data has it too: a user may mean either.

    A run is no data, and a set that is to be read from elsewhere is meant.
    """
    found, path = named_sets().get(name), Path(name)
    if found is None or options.path is not None or options.hub:
        return
    is_run = (path / "config.json").is_file() or (path / "checkpoints").is_dir()
    holds_some = path.is_dir() and not is_run and any(not each.name.startswith(".") for each in path.iterdir())
    if path.is_file() or holds_some:
        what = f"must name one thing, and is both a built-in set and a {'folder' if holds_some else 'file'} here"
        hint = f"give ./{name} for what is here, {type_name(type(found))} for the set"
        raise UserError(what, argument=name, hint=hint)


def _is_text(name: str) -> bool:
    """Whether a name is that of a file of texts, which is there."""
    return text_rows.is_text_file(Path(name)) and Path(name).exists()


def _texts(name: str, options: DataOptions, seed: int) -> Dataset:
    """The texts of a file, shuffled and split."""
    _require_located(name, options, None)
    options.require_effect(name, "text")
    found = text_rows.read_texts(Path(name))
    return split_texts(
        found.texts,
        lines=found.numbers,
        name=name,
        source=f"{name}, {len(found.texts):,} texts",
        held_out=HELD_OUT if options.held_out is None else options.held_out,
        seed=seed,
        limit=options.limit,
        length=options.length,
    )


def _rows(name: str, options: DataOptions, seed: int) -> RawData:
    """All rows of a named set or a path, from where the options say."""
    if name.startswith(PREFIX):
        _require_located(name, options, None)
        options.require_effect(name, "hub")
        return read_hub(name, options)
    sets = named_sets()
    named = set_at(name) if names_class(name) and not Path(name).exists() else sets.get(name)
    _require_located(name, options, named)
    if named is None:
        return _from_path(name, sets, options)
    options.require_effect(name, "set")
    return named.locate(options.path, options.hub) if isinstance(named, LocatedSet) else named.load(seed)


def _require_located(name: str, options: DataOptions, named: NamedSet | None) -> None:
    """UserError for a place that is given for data that have one."""
    if (options.path is not None or options.hub) and not isinstance(named, LocatedSet):
        setting = "hub" if options.path is None else "data"
        located = ", ".join(other.name for other in named_sets().values() if isinstance(other, LocatedSet))
        raise UserError(f"is for {located}, and not for {name!r}", argument=setting, hint="leave it out")
    if options.path is not None and options.hub:
        raise UserError("must not be given together", argument="data and hub", hint="leave one of them out")


def split(
    x: Tensor | StoredRows,
    labels: Tensor | None = None,
    *,
    name: str,
    source: str,
    held_out: float,
    seed: int = 0,
    limit: int | None = None,
    layout: Layout | None = None,
    class_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    files: FileDigests | None = None,
) -> Dataset:
    """Rows in data units, shuffled and split as `load` does: the same rows and seed give the same parts."""
    require_trainable(x, where=name)
    how = (labels, held_out, seed, limit)
    parts = split_stored(x, *how) if isinstance(x, StoredRows) else split_tensor(x, *how)
    return Dataset(
        name=name,
        source=f"{source}: {parts.sizes}",
        kind="image" if x.ndim == 4 else "vector",
        train=parts.train,
        held_out=parts.held_out,
        train_labels=parts.train_labels,
        held_out_labels=parts.held_out_labels,
        layout=layout or Layout(),
        class_names=class_names,
        notes=notes,
        files=files,
    )


def split_texts(
    texts: Sequence[str],
    *,
    name: str,
    source: str,
    held_out: float,
    seed: int = 0,
    limit: int | None = None,
    length: int | None = None,
    lines: Sequence[int] | None = None,
) -> Dataset:
    """Texts, shuffled and split as `load` does, as codes of the training texts' letters.

    Repeated lines stay: as draws of a law they say how frequent a text is, so both parts may have it. The sentence
    `source` counts them. `lines`: the number of each text's line, for errors.
    """
    text_rows.require_trainable(texts, name)
    text_rows.require_alike(texts, length, name, lines)
    order, rest = split_rows(len(texts), None, held_out, seed)
    train = order[:limit]
    kept, apart = ([texts[int(i)] for i in part] for part in (train, rest))
    return texts_dataset(kept, apart, name=name, source=source, length=length)


def texts_dataset(
    train: Sequence[str], held_out: Sequence[str], *, name: str, source: str, length: int | None = None
) -> Dataset:
    """Two parts of texts as codes: the letters are those of the first, the length is that of the longest of all."""
    longest = with_room(max(map(len, [*train, *held_out])))
    alphabet = Alphabet.fit(train, longest if length is None else length)
    check.fits_memory(len(train) + len(held_out), (alphabet.length,))
    repeated = len(train) + len(held_out) - len({*train, *held_out})
    repeats = f" ({repeated:,} {'repeats' if repeated == 1 else 'repeat'} an earlier one)" if repeated else ""
    letters = f"{len(alphabet.letters)} letters, at most {alphabet.length} a text"
    return Dataset(
        name=name,
        source=f"{source}{repeats} of {letters}: {len(train):,} to train on, {len(held_out):,} held out",
        kind="text",
        train=alphabet.encode(train, where=name),
        held_out=alphabet.encode(held_out, where=name),
        train_labels=None,
        held_out_labels=None,
        alphabet=alphabet,
    )


def _from_path(name: str, names: Collection[str], options: DataOptions) -> RawData:
    path = Path(name)
    if path.exists():
        if (found := stored_at(path, options)) is not None:
            return found
        if path.is_dir() or is_image(path):
            options.require_effect(name, "images")
            return read_images(path, options)
        options.require_effect(name, "table" if is_table(path) else "array")
        if is_table(path):
            return read_table(path, options)
        x = read_rows(path).x
        size = " x ".join(map(str, x.shape[1:]))
        what = f"images of {size}" if x.ndim == 4 else f"rows of {size} numbers"
        return RawData(x, read_labels(path, len(x)), f"{path}, {len(x):,} {what}")
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError("no such data set or path", argument=repr(name), hint=f"{hint}the names are {', '.join(names)}")
