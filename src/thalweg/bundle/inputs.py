"""What a model is given, arrays, frames and files, as rows in its data units."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.data import files
from thalweg.data.columns.layout import Layout
from thalweg.data.float32_check import COARSE, Float32Transform, check_scored, spacing
from thalweg.data.frames import is_frame
from thalweg.data.transform import ROUNDING
from thalweg.data.validate import as_floats, as_tensor, check_cells, check_input, check_shape
from thalweg.energy.outcomes import Conditional

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle


def as_rows(layout: Layout, x: Any, *, where: str = "x", gaps: bool = False) -> Tensor:
    """A frame (pandas, polars, Arrow) by the names of its columns, anything else as an array; not checked further.

    `gaps`: a frame may hold missing values.
    """
    if not is_frame(x):
        return as_tensor(x, where=where)
    values = layout.encode(x, where=where)
    check_cells(values, [str(name) for name in layout.names or range(values.shape[1])], where, gaps=gaps)
    return torch.from_numpy(values)


def checked_rows(bundle: "Bundle", x: Any, *, where: str = "x") -> Tensor:
    """Rows of a model as floats in data units; UserError where they are none, or too coarse for it."""
    table = bundle.kind == "vector" and is_frame(x)
    found = as_rows(bundle.layout, x, where=where) if table else as_tensor(x, where=where)
    found = check_input(found, bundle.shape, bundle.kind, where=where)
    if isinstance(bundle.model, Conditional):
        outcomes = bundle.model.outcomes
        outcomes.check_columns(found[:, found.shape[1] - outcomes.columns :], f"targets of {where}")
    return _fine_enough(bundle, found, where, bundle.layout.singles(x) if table else None)


def chain_positions(bundle: "Bundle", x: Tensor, *, where: str = "x") -> Tensor:
    """Positions of chains, which may leave the range of the data: the shape alone is checked."""
    check_shape(x, bundle.shape, bundle.kind, where=where)
    return x.to(torch.float32) if bundle.kind == "image" else as_floats(x)


def read_rows(
    bundle: "Bundle", path: Path, *, header: bool | None = None, drop: Sequence[str] = (), finite: bool = True
) -> Tensor:
    """The rows of a file for a model; a table's columns are matched by their names."""
    found = files.read_rows(path, layout=bundle.layout, header=header, drop=drop, shape=bundle.shape, finite=finite)
    return _fine_enough(bundle, found.x, str(path), found.singles) if finite else found.x


def _fine_enough(bundle: "Bundle", x: Tensor, where: str, singles: Sequence[bool] | None) -> Tensor:
    if bundle.dtype == torch.float64 and (x.dtype == torch.float32 or any(singles or ())):
        check_scored(bundle.transform.inner, x, bundle.layout.names, where, single=singles)
    return x


def in_float32(bundle: "Bundle", *sets: Tensor) -> tuple["Bundle", Tensor | None, list[Tensor]]:
    """(model, shift, sets) for figures and pictures, which compute in float32.

    All is as it was where the data are float32. Of float64 data the sets of rows are rounded, and the model takes
    and gives such rows. Where rounding would hide a column's spread, the first row of the first set is subtracted from
    all, `shift` (D,), and the model's units move along.
    """
    if bundle.dtype != torch.float64:
        return bundle, None, list(sets)
    first = sets[0]
    far = spacing(first.to(torch.float32)).amax(0) > COARSE * first.std(0)
    wide = first.amax(0) - first.amin(0) > ROUNDING * first.abs().amax(0)
    shift = first[0] if bool((far & wide).any()) else torch.zeros_like(first[0])
    other = copy.copy(bundle)
    other.dtype = torch.float32
    other.transform = Float32Transform(bundle.transform.inner, torch.float32, shift)
    return other, shift if bool(shift.any()) else None, [(x - shift).to(torch.float32) for x in sets]
