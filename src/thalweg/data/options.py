"""How data are read, beside their name: the options of `catalog.load`, and which of them have an effect on what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from thalweg.core import check
from thalweg.core.errors import UserError

What = Literal["set", "text", "table", "images", "array", "packed", "hub"]  # what a name turns out to be

WORDS: dict[What, tuple[str, str]] = {  # what an option is for, and what data are
    "set": ("named sets", "a named set"),
    "text": ("texts", "texts"),
    "table": ("tables", "a table"),
    "images": ("images", "images in files"),
    "array": ("arrays", "an array"),
    "packed": ("images in Parquet", "images in Parquet"),
    "hub": ("sets of the Hub", "a set of the Hub"),
}
EFFECT: dict[str, tuple[What, ...]] = {  # options that have an effect on some data alone
    "header": ("table",),
    "drop": ("table", "hub"),
    "targets": ("table",),
    "dtype": ("table",),
    "length": ("text",),
    "size": ("images", "packed", "hub"),
    "labels": ("images", "table", "packed", "hub"),
    "skip_bad": ("images", "packed", "hub"),
    "column": ("packed", "hub"),
    "split": ("hub",),
    "config": ("hub",),
}
BY_KEY = ("targets", "dtype", "length", "column", "split", "config")  # given as an override, `data.length=12`
LARGEST_SIZE = 4096  # pixels, of an image that a network is to learn
FOLDER = "folder"  # as `labels`: the folder below the one given, in which an image lies, is its class


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data are read, split and, of images, resized; each as `training.settings.DataSettings` keeps it.

    Args:
        path: The file or folder of a set that has no fixed place (`LocatedSet`).
        hub: Fetch such a set from the Hugging Face Hub.
        held_out: The share of rows held out; by default the set's own, 1/10 of a path.
        limit: Keep so many rows of the shuffled training part.
        header: Whether the first line of a CSV names its columns; None: the lines must tell.
        drop: Columns of a table to leave out.
        targets: Columns of a table that become the last of a row, in this order.
        dtype: Of a table: by the names of columns "number" or "category", where the values alone do not tell.
        length: Of texts: the most letters that the model takes; None: the longest text's, and some room.
        size: Of images: the side of the square, in pixels, to which each is resized and cropped.
        labels: Where classes come from: of images "folder", or a CSV of names and classes; of a table a column.
        skip_bad: Leave out images that cannot be read, and name them, rather than stop.
        column: Of images as bytes in a table: the column that holds them.
        split: Of a set on the Hub: which split.
        config: Of a set on the Hub: which configuration.
        workers: Threads that read the next steps' rows while a step is computed, of rows that stay on disk.
    """

    path: str | Path | None = None
    hub: bool = False
    held_out: float | None = None
    limit: int | None = None
    header: bool | None = None
    drop: Sequence[str] = ()
    targets: Sequence[str] = ()
    dtype: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    size: int | None = None
    labels: str | None = None
    skip_bad: bool = False
    column: str | None = None
    split: str | None = None
    config: str | None = None
    workers: int = 2

    def __post_init__(self):
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise UserError("must be in (0, 1)", argument="held_out", value=self.held_out)
        if self.limit is not None:
            check.count(limit=self.limit)
        if self.size is not None:
            check.whole("size", self.size, 1, LARGEST_SIZE)
        if self.labels is not None and (not isinstance(self.labels, str) or not self.labels):
            raise UserError('must be "folder", or the name of a CSV or a column', argument="labels", value=self.labels)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "DataOptions":
        """Those in the section `data` of a run; what a run of before does not name is as by default."""
        return cls(**{each.name: spec[each.name] for each in fields(cls) if each.name in spec})

    def require_effect(self, name: str, what: What) -> None:
        """UserError about the first option that is given and has no effect on data of this kind."""
        for option, kinds in EFFECT.items():
            if getattr(self, option) in (None, False, (), [], {}) and not (option == "header" and self.header is False):
                continue
            if what not in kinds:
                *others, last = [WORDS[kind][0] for kind in kinds]
                wanted = f"{', '.join(others)} and {last}" if others else last
                argument = f"data.{option}" if option in BY_KEY else option
                text = f"is for {wanted}, and {name} is {WORDS[what][1]}"
                raise UserError(text, argument=argument, hint="leave it out")
