"""Checks of arrays, and their conversion to tensors in data units.

Data units: pixels uint8 or float in [0, 1], (N, C, H, W); rows of real, finite numbers, (N, D). Pixels become float32.
Rows stay float64 where float32 would round them, until a transform has standardised them (`data.float32_check`).
"""

import math
from collections.abc import Sequence, Sized
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from thalweg.core.errors import ROW, UserError, one_line
from thalweg.data.bad_rows import BadRows

Kind = Literal["image", "vector", "text"]
LEAST_ROWS = 20
ONES = 0.01  # share of pixels; a dark photograph has fewer ones and no more
ROUNDS = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)  # more than float32 holds


def as_tensor(x: Any, *, where: str = "x") -> Tensor:
    """A tensor as it is, any other array as a copy in the machine's byte order; UserError for anything else."""
    try:
        if isinstance(x, Tensor):
            return _with_values(x, where)
        array = np.ma.filled(x.astype(float), np.nan) if isinstance(x, np.ma.MaskedArray) else np.asarray(x)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:
        raise UserError(f"must be an array of numbers ({one_line(error)})", argument=where) from error


def _with_values(x: Tensor, where: str) -> Tensor:
    if x.layout != torch.strided or x.is_meta or x.is_quantized:
        kind = "meta" if x.is_meta else "quantized" if x.is_quantized else str(x.layout)
        raise UserError(f"must be a dense tensor of numbers, not {kind}", argument=where, hint="convert it first")
    return x


def as_float(x: Tensor) -> Tensor:
    """Pixels as numbers: uint8 to float32 in [0, 1] by dividing by 255; anything else as it is."""
    return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x


def as_floats(x: Tensor) -> Tensor:
    """Rows as float32 where that holds every number of their type, else as float64."""
    return x.to(torch.float64 if x.dtype in ROUNDS else torch.float32)


def check_input(x: Tensor, shape: tuple[int, ...], kind: Kind, *, where: str = "x") -> Tensor:
    """Rows of a Python caller as floats in data units, or a UserError about the argument `where`."""
    return (check_images if kind == "image" else check_rows)(x, shape, where=where)


def check_images(x: Tensor, shape: tuple[int, ...] | None, *, where: str = "x") -> Tensor:
    """Images (N, *shape), uint8 or float in [0, 1], as float32 in [0, 1]; a UserError says what is wrong."""
    verify(x, shape, "image", where=where)
    return as_float(x).to(torch.float32)


def check_rows(x: Tensor, shape: tuple[int, ...] | None, *, where: str = "x") -> Tensor:
    """Finite real vectors (N, *shape) as float32 or float64 (`as_floats`); a UserError says what is wrong."""
    verify(x, shape, "vector", where=where)
    return as_floats(x)


def require_trainable(x: Sized, *, where: str = "x") -> None:
    """UserError for fewer rows than a training and a held-out part need."""
    if len(x) < LEAST_ROWS:
        rows = "1 row" if len(x) == 1 else f"{len(x)} rows"
        raise UserError(f"holds {rows}, training needs at least {LEAST_ROWS}", argument=where, hint="give more data")


def verify(x: Tensor, shape: tuple[int, ...] | None, kind: Kind, *, where: str) -> None:
    """UserError about `where`, unless x is rows (N, *shape) of this kind in data units, finite in float32."""
    check_shape(x, shape, kind, where=where)
    if x.numel() == 0:
        what = "column" if len(x) else "row"
        raise UserError(f"must have one {what} or more; the shape is {tuple(x.shape)}", argument=where)
    if kind == "image" and not x.is_floating_point() and x.dtype not in (torch.uint8, torch.bool):
        raise UserError(f"must be uint8 in 0..255 or float in [0, 1]; pixels are {x.dtype}", argument=where)
    values = x.detach() if x.dtype in (torch.float32, torch.uint8) else x.detach().to(torch.float32)
    low, high = (float(v) for v in values.aminmax())  # NaN where one is
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = (~values.isfinite()).flatten(1).any(1).nonzero().flatten()
        refuse_not_finite(len(bad), len(x), int(bad[0]), where)
    if kind == "image" and values.dtype == torch.uint8:
        refuse_black(int(high), int(values.count_nonzero()), values.numel(), where)
    if kind == "image" and values.is_floating_point():
        refuse_pixels(low, high, where)


def refuse_not_finite(num_bad: int, num_rows: int, first: int, where: str) -> None:
    """UserError about rows with NaN, infinity, or numbers beyond float32."""
    what = f"must be finite in float32; {num_bad} of {num_rows} rows are not, first {ROW}"
    raise UserError(what, argument=where, hint="drop or fill them", row=first)


def refuse_black(largest: int, count: int, total: int, where: str) -> None:
    """UserError for masks as uint8, of which `count` of `total` pixels are 1 and no other is above 0."""
    if largest == 1 and count >= ONES * total:
        what = "must be uint8 in 0..255 or float in [0, 1]; these uint8 hold 0 and 1 alone, which is black"
        raise UserError(what, argument=where, hint="multiply by 255, or give them as bool or float")


def refuse_pixels(low: float, high: float, where: str) -> None:
    """UserError where pixels in floats, from `low` to `high`, are not in [0, 1] up to rounding."""
    if low < -1e-6 or high > 1 + 1e-6:
        if -1 - 1e-6 <= low < 0 and high <= 1 + 1e-6:
            move = "(x + 1) / 2?"
        else:
            move = "divide by 255?" if low > -1e-6 and high <= 255 else "scale them to [0, 1]"
        what = f"must be uint8 in 0..255 or float in [0, 1]; these floats span [{low:g}, {high:g}]"
        raise UserError(what, argument=where, hint=move)


def refuse_deep(pixels: np.ndarray, where: str) -> None:
    """UserError for pixels in whole numbers of which one is beyond 255, as those of 16 bits are."""
    if pixels.dtype.kind not in "iu" or not pixels.size or int(pixels.max()) <= 255:
        return
    bits, span = 8 * pixels.dtype.itemsize, f"[{pixels.min()}, {pixels.max()}]"
    what = f"must be uint8 in 0..255 or float in [0, 1]; these whole numbers of {bits} bits span {span}"
    move = "scale them to [0, 1]"
    if pixels.dtype == np.uint16:
        move = "divide by what is white, 65535 where all 16 bits are used"
    raise UserError(what, argument=where, hint=move)


def check_cells(
    x: np.ndarray,
    names: Sequence[str],
    where: str,
    *,
    rows: Sequence[int] | None = None,
    gaps: bool = False,
    hint: str = "drop the row, or fill the value",
    largest: float = math.inf,
    bad_rows: BadRows | None = None,
) -> None:
    """UserError, with column and row, for infinity, for what is beyond `largest` and, unless `gaps` are taken, for NaN.

    `rows`: numbers of the rows, from 0. `hint`: the remedy for NaN. `bad_rows`: what becomes of such rows.
    """
    bad = np.isinf(x) | (np.abs(x) > largest)
    bad = bad if gaps else bad | np.isnan(x)
    for i in np.flatnonzero(bad.any(1)).tolist():
        column = int(bad[i].argmax())
        value, row = x[i, column], int(i if rows is None else rows[i])
        what = "missing (NaN)" if np.isnan(value) else "infinite (infinity)" if np.isinf(value) else f"{value:g}"
        if not np.isnan(value):
            hint = "correct it" if np.isinf(value) else f"rescale the column to numbers up to {largest:.0e}"
        reason = f"column {names[column]!r} is {what}"
        error = UserError(f"{reason} in {ROW}", argument=where, hint=hint, row=row)
        if bad_rows is None:
            raise error
        bad_rows.refuse(error, row, reason)


def check_shape(x: Tensor, shape: tuple[int, ...] | None, kind: Kind, *, where: str) -> None:
    """UserError about `where`, unless x is real and of shape (N, *shape)."""
    if x.is_complex():
        raise UserError("must be real, not complex", argument=where)
    ndim = len(shape) if shape is not None else (3 if kind == "image" else 1)
    if x.ndim != ndim + 1 or (shape is not None and x.shape[1:] != shape):
        wanted = ", ".join(str(s) for s in shape) if shape is not None else ("C, H, W" if kind == "image" else "D")
        condition = f"must have the shape (N, {wanted}); it has {tuple(x.shape)}"
        raise UserError(condition, argument=where, hint=_shape_hint(x, shape))


def _shape_hint(x: Tensor, shape: tuple[int, ...] | None) -> str | None:
    """The one operation that turns x into (N, *shape), if there is one."""
    if shape is None:
        return None
    got, size = tuple(x.shape), ", ".join(map(str, shape))
    moves = {
        "add the batch axis, x[None]": got == shape,
        "transpose it, x.T": len(shape) == 1 and len(got) == 2 and got[0] == shape[0],
        f"reshape it, x.reshape(-1, {size})": len(got) != len(shape) + 1 and math.prod(got[1:]) == math.prod(shape),
    }
    if len(shape) == 3 and len(got) == 4:
        c, h, w = shape
        moves["channels come first, x.permute(0, 3, 1, 2)"] = got[1:] == (h, w, c)
        moves["height comes before width, x.transpose(2, 3)"] = got[1:] == (c, w, h)
        moves[f"{got[1]} channels where {c} are expected, convert the colours"] = got[2:] == (h, w)
        moves[f"resize to {h} x {w} pixels"] = got[1] == c
    return next((text for text, fits in moves.items() if fits), None)


def arrange(x: Tensor, shape: tuple[int, ...] | None, where: str) -> Tensor:
    """Images as (N, C, H, W) and a single row as (1, ...), where that is unambiguous."""
    if shape is not None:
        if tuple(x.shape) == shape or (len(shape) == 3 and tuple(x.shape) == shape[1:] and shape[0] == 1):
            return x.reshape(1, *shape)
        if x.ndim == 4 and tuple(x.shape[1:]) != shape and (x.shape[3], x.shape[1], x.shape[2]) == shape:
            return x.permute(0, 3, 1, 2).contiguous()
        return x[:, None] if x.ndim == 3 and len(shape) == 3 else x
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        if x.shape[3] not in (1, 3):
            what = f"must be images (N, C, H, W) of 1 or 3 channels; the shape is {tuple(x.shape)}"
            raise UserError(what, argument=where)
        return x.permute(0, 3, 1, 2).contiguous()
    if x.ndim not in (2, 4):
        condition = f"must be rows (N, D) or images (N, H, W) or (N, C, H, W); it is {x.ndim}-D"
        raise UserError(condition, argument=where)
    return x
