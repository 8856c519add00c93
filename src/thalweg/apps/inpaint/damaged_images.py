"""Reads the damaged images that are to be completed, and says which of them cannot be used."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.data.files import read_array, read_names, read_picture, read_rows
from thalweg.data.formats.base import format_of
from thalweg.data.formats.images import is_image, probe
from thalweg.data.image_files import pictures_of, relative, survey
from thalweg.data.validate import verify

ROUNDING = 1 / (255 * math.sqrt(12))  # standard deviation of what 8 bits leave out


@dataclass(frozen=True, kw_only=True)
class DamagedImages:
    """Images x (r, *shape), uint8 or float.

    Attributes:
        names: A name for each image: its file, or its number.
        rows: Image j is number `rows[j]` of the `count` that were found.
        rounded: Whether they were stored with 8 bits.
        skipped: Files that cannot be used, each with the reason.
        notes: Lines to show to the user.
    """

    x: Tensor
    names: list[str]
    rows: Tensor
    count: int
    rounded: bool
    skipped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def usable(self, known: Bool[Tensor, "count *d"] | None, skip_bad: bool) -> Self:
        """Those without NaN or infinity where `known` (everywhere without it); UserError, or `skipped`, for others."""
        finite = self.x.isfinite() if self.x.is_floating_point() else torch.ones_like(self.x, dtype=torch.bool)
        if known is not None:
            finite = finite | ~known[self.rows]
        good = finite.flatten(1).all(1)
        reason = f"must be finite{' where it is observed' if known is not None else ''}"
        lost = [name for name, fine in zip(self.names, good.tolist(), strict=True) if not fine]
        if lost and not skip_bad:
            more = f", and so must {len(lost) - 1} more" if len(lost) > 1 else ""
            hint = "mask it, fill it, or skip it with --skip-bad"
            raise UserError(f"{reason}{more}", argument=f"image {lost[0]}", hint=hint)
        if not bool(good.any()):
            what = f"must be finite in one of the {self.count} images at least"
            raise UserError(what, argument="images", hint="mask or fill other pixels")
        return replace(
            self,
            x=self.x[good],
            rows=self.rows[good],
            names=[name for name, fine in zip(self.names, good.tolist(), strict=True) if fine],
            skipped=[*self.skipped, *({"file": name, "reason": reason} for name in lost)],
            notes=[*self.notes, *(f"skipped image {name}: {reason}" for name in lost)],
        )


def read_damaged_images(
    path: Path,
    shape: tuple[int, ...],
    *,
    skip_bad: bool = False,
    flat: bool = False,
    size: int | None = None,
    **table: Any,
) -> DamagedImages:
    """The images in a file, a folder or an array, each of `shape`; with `flat` also arrays ([N,] prod(shape)).

    `size`: the side to which pictures are resized and cropped. `table`: keywords of `data.files.read_rows` for rows in
    a table.

    UserError for a file of a folder that cannot be used, unless `skip_bad` passes over it.
    """
    if path.is_dir():
        return _folder(path, shape, skip_bad, size)
    x = _flat(path, shape) if flat else None
    x = read_rows(path, shape=shape, finite=False, size=size, **table).x if x is None else x
    notes = _coloured([path], shape) if is_image(path) else []
    names, rows = read_names(path, len(x)), torch.arange(len(x))
    return DamagedImages(x=x, names=names, rows=rows, count=len(x), rounded=x.dtype == torch.uint8, notes=notes)


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


def _folder(path: Path, shape: tuple[int, ...], skip_bad: bool, size: int | None) -> DamagedImages:
    found = pictures_of(path)
    files, good, skipped = found.files, [], []
    for i, file in enumerate(files):
        try:
            good.append((i, read_picture(file, shape=shape, size=size)))
        except UserError as error:
            if not skip_bad:
                hint = "; ".join([*([error.hint] if error.hint else []), "--skip-bad skips such files"])
                raise error.replace(hint=hint) from error
            skipped.append({"file": relative(file, path), "reason": " ".join(str(error).split())})
    if not good:
        first = skipped[0]["reason"]
        raise UserError(
            f"must hold an image that can be used, and the first of {len(files)} is: {first}", argument=str(path)
        )
    rows = torch.tensor([i for i, _ in good])
    used = [files[i] for i, _ in good]
    altered = survey(used, path, shape=shape, size=size, skip_bad=True).altered(resized=True)
    notes = [f"{path}: {found.passed_over} passed over"] if found.passed_over else []
    notes += [
        *(f"skipped {bad['reason']}" for bad in skipped),
        *_coloured(used, shape),
        *(f"{path}: {line}" for line in altered),
    ]
    x, names = torch.cat([image for _, image in good]), [relative(file, path) for file in used]
    return DamagedImages(x=x, names=names, rows=rows, count=len(files), rounded=True, skipped=skipped, notes=notes)


def _coloured(files: list[Path], shape: tuple[int, ...]) -> list[str]:
    """A line where a model of grey images is given others."""
    odd = [file for file in files if not probe(file).grey] if len(shape) == 3 and shape[0] == 1 else []
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return [f"{odd[0].name}{more}: colour becomes grey, as the model is of grey images"] if odd else []
