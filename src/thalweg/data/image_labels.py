"""The classes of images in files: by the folder that they lie in, or by a table of names."""

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.data.formats.base import Table
from thalweg.data.image_files import relative
from thalweg.data.options import FOLDER
from thalweg.data.tables import open_table

LEAST = 2  # images of a class: one to train on, one held out
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class ImageLabels:
    """The class of each picture, by its path from the folder `root`, and where classes come from."""

    classes: Mapping[str, str]
    root: Path
    where: str

    def of(self, files: Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
        """int64 (N,) of these pictures, numbers of their classes, whose names are sorted; as numbers where all are.

        UserError for fewer than two classes, and for a class with one picture.
        """
        found = [self.classes[relative(file, self.root)] for file in files]
        counts = Counter(found)
        if len(counts) < 2:
            only = next(iter(counts), "none")
            raise UserError(f"must give two classes or more, and gives {only!r} alone", argument=self.where)
        few = sorted(name for name, n in counts.items() if n < LEAST)
        if few:
            what = f"must give each class {LEAST} images or more, and gives {_some(few)} one"
            raise UserError(what, argument=self.where, hint="add images, or leave the class out")
        order = sorted(counts, key=int if all(name.isdecimal() for name in counts) else None)
        number = {name: i for i, name in enumerate(order)}
        return torch.tensor([number[name] for name in found]), tuple(order)


def classes_of_images(files: Sequence[Path], root: Path, labels: str) -> ImageLabels:
    """The classes of pictures in the folder `root`: `labels` is "folder", or a CSV or Parquet of names and classes.

    UserError: a picture without a class, or with two; a name in the table that is no picture; no second class.
    """
    if not root.is_dir():
        raise UserError(f"is for folders of images, and {root.name} is none", argument="labels", value=labels)
    names = [relative(file, root) for file in files]
    return _by_folder(names, root) if labels == FOLDER else _by_table(names, root, Path(labels))


def _by_folder(names: Sequence[str], root: Path) -> ImageLabels:
    """The first folder of each path: `cats/2024/1.png` is one of cats."""
    bare = [name for name in names if "/" not in name]
    if bare:
        what = f"must have each image in the folder of its class, and {_some(bare)} lie{'s' * (len(bare) == 1)} beside"
        raise UserError(f"{what} them", argument=str(root), hint="move it, or give a table of names as labels")
    classes = {name: name.partition("/")[0] for name in names}
    with os.scandir(root) as entries:
        folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    empty = sorted({*folders} - {*classes.values()})
    if empty:
        what = f"must have images in each of its folders, which are the classes, and has none in {_some(empty)}"
        raise UserError(what, argument=str(root), hint="remove it, or add images")
    return ImageLabels(classes, root, str(root))


def _by_table(names: Sequence[str], root: Path, table: Path) -> ImageLabels:
    """Two columns, the name of an image and its class, whatever they are called; a name is the path from the folder."""
    where = str(table)
    if table.is_dir():
        hint = 'give "folder" where the folders of the images are their classes, else a CSV of names and classes'
        raise UserError("must be a table, and is a folder", argument="labels", value=where, hint=hint)
    if not table.is_file():
        hint = 'give "folder", or the path of a CSV of names and classes'
        raise UserError("no such file", argument="labels", value=where, hint=hint)
    classes: dict[str, str] = {}
    opened, pairs = _pairs(table, {*names})
    for row, (name, label) in enumerate(pairs):
        key = _normal(name)
        if not label:
            at = f"{where}, {opened.row_name(row)}"
            raise UserError(f"must give each image a class, and gives {name!r} none", argument=at)
        if key in classes:
            at = f"{where}, {opened.row_name(row)}"
            raise UserError(f"must name each image once, and names {name!r} twice", argument=at)
        classes[key] = label
    unknown, missing = sorted(classes.keys() - {*names}), [name for name in names if name not in classes]
    if missing:
        what = f"must name each image of {root}, and lacks {_some(missing)}"
        raise UserError(what, argument=where, hint="add them; a name is the path from that folder")
    if unknown:
        what = f"must name images of {root} alone, and names {_some(unknown)}, which is not there"
        raise UserError(what, argument=where, hint="remove it; a name is the path from that folder")
    return ImageLabels(classes, root, where)


def _pairs(path: Path, names: set[str]) -> tuple[Table, list[tuple[str, str]]]:
    """A table of two columns, and its rows as texts. A first line that names an image is a row."""
    first = None
    if path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
            first = next(csv.reader(file), [])
    header = None if first is None else not (first and _normal(first[0].strip()) in names)
    table = open_table(path, header=header)
    if len(table.names) != 2:
        what = f"must have two columns, the name of an image and its class, and has {len(table.names)}"
        raise UserError(what, argument=str(path))
    return table, [pair for block in table.blocks() for pair in zip(*_texts(block), strict=True)]


def _texts(block: Any) -> list[list[str]]:
    """The values of each column of an Arrow table as texts, without spaces at their ends."""
    return [["" if cell is None else str(cell).strip() for cell in column.to_pylist()] for column in block.columns]


def _normal(name: str) -> str:
    """A path from the folder as files are named here: with slashes, without ./ before it."""
    return name.replace("\\", "/").removeprefix("./")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
