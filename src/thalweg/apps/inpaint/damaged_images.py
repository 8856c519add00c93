"""Reads the damaged images that are to be completed, and says which of them cannot be used."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from thalweg.core.errors import UserError, row_from_zero
from thalweg.data.files import Rows, read_array, read_rows
from thalweg.data.formats.base import Table, format_of
from thalweg.data.formats.images import is_image, probe
from thalweg.data.validate import verify

ROUNDING = 1 / (255 * math.sqrt(12))  # standard deviation of what 8 bits leave out


@dataclass(frozen=True, kw_only=True)
class DamagedImages:
    """Images x (r, *shape), uint8 or float.

    Attributes:
        names: A name for each image: its file, or its number.
        rows: Image j is number `rows[j]` of the `count` that were found.
        rounded: Whether they were stored with 8 bits.
        skipped: Files and rows that cannot be used, each with the reason.
        notes: Lines to show to the user.
        table: That rows were read from, which tells what messages call them; None of images and arrays.
    """

    x: Tensor
    names: list[str]
    rows: Tensor
    count: int
    rounded: bool
    skipped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: Table | None = None

    @property
    def noun(self) -> str:
        """What messages call one of them: images, or rows of numbers."""
        return "image" if self.x.ndim == 4 else "row"

    @property
    def numbers(self) -> str:
        """What messages call the numbers of one."""
        return "pixels" if self.x.ndim == 4 else "values"

    @property
    def present(self) -> Bool[Tensor, "count *d"]:
        """Which values there are: those that are not NaN; all of one that was left out, which is not used."""
        found = torch.ones((self.count, *self.x.shape[1:]), dtype=torch.bool)
        found[self.rows] = ~self.x.isnan()
        return found

    def _called(self, names: list[str]) -> list[str]:
        if self.noun == "image":
            return [f"image {name}" for name in names]
        rows = [int(name) for name in names]
        return [*map(row_from_zero, rows)] if self.table is None else self.table.row_names(rows)

    def usable(self, known: Bool[Tensor, "count *d"] | None, skip_bad: bool) -> Self:
        """Those without NaN or infinity where `known` (everywhere without it); UserError, or `skipped`, for others."""
        finite = self.x.isfinite() if self.x.is_floating_point() else torch.ones_like(self.x, dtype=torch.bool)
        if known is not None:
            finite = finite | ~known[self.rows]
        good = finite.flatten(1).all(1)
        reason = f"must be finite{' where it is observed' if known is not None else ''}"
        lost = [name for name, fine in zip(self.names, good.tolist(), strict=True) if not fine]
        called = self._called(lost)
        if lost and not skip_bad:
            more = f", and so must {len(lost) - 1} more" if len(lost) > 1 else ""
            hint = "mask it, fill it, or skip it with --skip-bad"
            raise UserError(f"{reason}{more}", argument=called[0], hint=hint)
        if not bool(good.any()):
            what = f"must be finite in one of the {self.count} {self.noun}s at least"
            raise UserError(what, argument=f"{self.noun}s", hint=f"mask or fill other {self.numbers}")
        return replace(
            self,
            x=self.x[good],
            rows=self.rows[good],
            names=[name for name, fine in zip(self.names, good.tolist(), strict=True) if fine],
            skipped=[*self.skipped, *({"file": name, "reason": reason} for name in (called if self.table else lost))],
            notes=[*self.notes, *(f"left out {name}: {reason}" for name in called)],
        )


def read_damaged_images(
    path: Path, shape: tuple[int, ...], *, skip_bad: bool = False, flat: bool = False, **how: Any
) -> DamagedImages:
    """The images in a file, a folder or an array, each of `shape`; with `flat` also arrays ([N,] prod(shape)).

    `how`: other keywords of `data.files.read_rows`. UserError for a picture, or a row with a text among its numbers,
    that cannot be used, unless `skip_bad` leaves it out.
    """
    x = _flat(path, shape) if flat else None
    found = read_rows(path, shape=shape, finite=False, skip_bad=skip_bad, **how) if x is None else Rows(x)
    files = [path / name for name in found.files] if path.is_dir() else [path]
    return DamagedImages(
        x=found.x,
        names=found.names,
        rows=torch.arange(len(found.x)) if found.numbers is None else found.numbers,
        count=found.total,
        rounded=found.x.dtype == torch.uint8,
        skipped=[{"file": each.name, "reason": each.reason} for each in found.left_out],
        notes=[*(f"left out {each.name}: {each.reason}" for each in found.left_out), *_coloured(files, shape)],
        table=found.table,
    )


def _flat(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    found = format_of(path)
    if found is None or set(found.holds) != {"image", "vector"}:
        return None
    try:
        x = read_array(path, shape=(math.prod(shape),), finite=False).to(torch.float32).reshape(-1, *shape)
    except UserError:  # reading it with its own shape gives the better message
        return None
    verify(x.nan_to_num(0, 0, 0), shape, "image", where=str(path))
    return x


def _coloured(files: list[Path], shape: tuple[int, ...]) -> list[str]:
    """A line where a model of grey images is given others."""
    grey = len(shape) == 3 and shape[0] == 1
    odd = [file for file in files if is_image(file) and not probe(file).grey] if grey else []
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return [f"{odd[0].name}{more}: colour becomes grey, as the model is of grey images"] if odd else []
