"""The contract of a named data set, and how one is found: a module of this package that defines a `NamedSet`."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor

from thalweg.core.config import build
from thalweg.core.discover import by_name, instances
from thalweg.core.errors import UserError
from thalweg.data.columns.layout import Layout
from thalweg.data.file_digests import FileDigests
from thalweg.data.stored_rows import StoredRows


class RawData(NamedTuple):
    """All rows of a set, in data units, before they are shuffled and split.

    Args:
        x: Images (N, C, H, W), uint8 or float32 in [0, 1], or rows (N, D), float32 or float64.
            They may stay where they are stored.
        labels: int64 (N,); None where there are none.
        what: Which data these are, in a few words.
        share: The share of rows that is held out, where the caller does not say.
        layout: The columns of a table.
        class_names: Of the labels 0, 1, …, where the data name them.
        notes: Lines for people about how the data were read, such as what was left out.
        files: Digests of the files that they lie in, where they are many.
    """

    x: Tensor | StoredRows
    labels: Tensor | None
    what: str
    share: float = 0.1
    layout: Layout = Layout()
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: FileDigests | None = None


class NamedSet(ABC):
    """Abstract: a data set that has a name. Built without arguments; what is heavy is imported in `load`."""

    name: ClassVar[str]  # as on the command line: lower case, with hyphens

    @abstractmethod
    def load(self, seed: int) -> RawData:
        """All rows that may be trained on. `seed`: that of the run, which only a set that is generated reads."""


class LocatedSet(NamedSet):
    """Abstract: a set that lies in a file or on the Hub. `data=` and `hub=` may be given for these sets alone."""

    def load(self, seed: int) -> RawData:
        """The set from where it lies by default."""
        return self.locate(None, False)

    @abstractmethod
    def locate(self, data: str | Path | None, hub: bool) -> RawData:
        """The set from the file or folder `data`, or from the Hub; with neither from where it lies by default."""


def named_sets() -> dict[str, NamedSet]:
    """Every set by its name."""
    return by_name((each.name, each) for each in instances("thalweg.data.sets", NamedSet))


def set_at(path: str) -> NamedSet:
    """The set whose class has an import path, `my_plugin.rings:Rings`, in a package that is trusted."""
    found = build({"type": path}, "data", trusted=("thalweg.data.sets",))
    if not isinstance(found, NamedSet):
        raise UserError("must name a class of data sets", argument="data", value=path)
    return found
