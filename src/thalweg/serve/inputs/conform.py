"""Arrays of a request as the model's inputs want them: the shape, and the datatype where nothing is lost."""

from collections.abc import Mapping, Sequence

import numpy as np

from thalweg.bundle.servable import NUMPY, TensorSpec
from thalweg.serve.errors import HttpError, malformed, unusable
from thalweg.serve.models import ServedModel


def check_rows(count: int, max_batch: int) -> None:
    """400 for no row, 413 for too many."""
    if count < 1:
        raise malformed("must have one row or more", "instances")
    if count > max_batch:
        raise HttpError(413, "too_many_rows", f"must have at most {max_batch} rows, not {count}", field="instances")


def conform(value: np.ndarray, spec: TensorSpec, *, rounds: bool = False) -> np.ndarray:
    """(B, *) in the input's shape and datatype; 422 where the shape is another or a number would change.

    (B, 1) stands for (B,). `rounds`: a float may be rounded to float32, as JSON and numpy write float64 for all.
    """
    if value.ndim == len(spec.shape) + 1 and value.shape[-1] == 1:
        value = value[..., 0]
    if value.ndim != len(spec.shape) or value.shape[1:] != spec.shape[1:]:
        wanted = ", ".join(["N", *map(str, spec.shape[1:])])
        raise unusable(f"must have the shape ({wanted}), and has {tuple(value.shape)}", spec.name)
    target = np.dtype(NUMPY[spec.datatype])
    if value.dtype == target or value.dtype.kind == "O":
        if (value.dtype.kind == "O") != (target.kind == "O"):
            raise unusable(f"must be {spec.datatype}, and holds text", spec.name)
        return value
    if target.kind == "O" or value.dtype.kind not in "biuf":
        raise unusable(f"must be {spec.datatype}, and holds numbers", spec.name)
    return _converted(value, target, spec, rounds)


def _converted(value: np.ndarray, target: np.dtype, spec: TensorSpec, rounds: bool) -> np.ndarray:
    if value.dtype.kind == "b" and target.kind != "b":
        raise unusable(f"must be {spec.datatype}, not BOOL", spec.name)
    rounds = rounds and value.dtype.kind == "f" and target.kind == "f"
    with np.errstate(all="ignore"):
        found = value.astype(target)
        if rounds and np.isfinite(found).all():
            return found
        same = (found.astype(value.dtype) == value) & ((found < 0) == (value < 0))
    if target.kind == "f" and value.dtype.kind in "iu":
        same &= found < 2.0 ** (64 if value.dtype.kind == "u" else 63)  # what lies above may come back by saturation
    lost = ~same & ~np.isnan(value) if target.kind == "f" else ~same
    if rounds:
        lost = np.isfinite(value) & ~np.isfinite(found)
    if lost.any():
        first = value[lost].flat[0]
        raise unusable(f"must be numbers that {spec.datatype} holds exactly, and {first} is none", spec.name)
    return found


def require_columns(specs: Sequence[TensorSpec], rows: Mapping[str, object]) -> None:
    """422 unless these are the model's inputs by name."""
    known = [spec.name for spec in specs]
    for name in known:
        if name not in rows:
            raise unusable("must be there", name)
    for name in rows:
        if name not in known:
            raise unusable(f"must be one of the inputs {', '.join(known[:10])}", str(name)[:80])


def check_values(model: ServedModel, rows: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The same rows; 422 for pixels outside [0, 1] and for infinity. NaN is a missing value, but no pixel."""
    image = model.servable.content == "image"
    for name, value in rows.items():
        if value.dtype.kind != "f":
            continue
        if not image and np.isfinite(value).all():
            continue
        low, high = value.min(), value.max()  # NaN if one is
        if image and not (low >= 0 and high <= 1):
            raise unusable("must be pixels in [0, 1], or uint8 in 0..255 where the format has them", name)
        if np.isinf(low) or np.isinf(high) or (np.isnan(low) and np.isinf(value).any()):
            raise unusable("must hold finite numbers", name)
    return rows
