"""Arrays of a request as the model's inputs want them: the shape, and the datatype where nothing is lost."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from thalweg.bundle.servable import NUMPY, TensorSpec
from thalweg.core.errors import row_from_zero
from thalweg.data.columns.column_reader import is_truth
from thalweg.serve.errors import HttpError, malformed, unusable
from thalweg.serve.models import ServedModel

RowName = Callable[[int], str]  # what messages call a row of a request, by its number from 0


def check_rows(count: int, max_batch: int, field: str = "instances") -> None:
    """400 for no row, 413 for too many."""
    if count < 1:
        raise malformed("must have one row or more", field)
    if count > max_batch:
        raise HttpError(413, "too_many_rows", f"must have at most {max_batch} rows, not {count}", field=field)


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


def require_columns(
    specs: Sequence[TensorSpec],
    rows: Mapping[str, object],
    ignored: Collection[str] = (),
    *,
    place: str = "",
    header: bool = False,
) -> None:
    """422 unless these are the model's inputs by name; those that are `ignored` may be there too.

    `place`: which row it is, for messages. `header`: these are the names in the first line of a CSV.
    """
    known = [spec.name for spec in specs]
    for name in known:
        if name not in rows:
            raise unusable(f"must be there{_of_header([*rows], known) if header else place}", name)
    for name in rows:
        if name not in known and name not in ignored:
            nameless = "" if str(name).strip() else ", and a column there has no name"
            raise unusable(f"must be one of the inputs {', '.join(known[:10])}{place}{nameless}", str(name)[:80])


def _of_header(names: Sequence[str], known: Sequence[str]) -> str:
    """What the first line of a CSV is, where it lacks a column of those that are `known`."""
    if (len(names) > 1 or len(known) == 1) and not {*names} & {*known}:
        wanted = ", ".join([*known[:5], *(["…"] if len(known) > 5 else [])])
        begins = f"begins with {names[0][:40]!r}" if names else "is empty"
        return f": the first line must name the columns, {wanted}, and {begins}"
    if len(names) != 1:
        odd = next((name for name in names if name not in known and name.strip() in known), None)
        return ", named in the first line" + ("" if odd is None else f", where {odd[:40]!r} has a blank too many")
    return f"; the first line names one column, {names[0][:40]!r}, and commas separate names and values"


def check_values(
    model: ServedModel, rows: Mapping[str, np.ndarray], row_name: RowName = row_from_zero
) -> Mapping[str, np.ndarray]:
    """The same rows; 422 for pixels outside [0, 1], for infinity, and for a missing value where there may be none; 400
    for a number that is neither 1 nor 0 in a column of true and false.

    NaN is a missing value, but no pixel.
    """
    image = model.servable.content == "image"
    for name, value in rows.items():
        if value.dtype.kind == "O" and model.why_no_gaps is not None:
            _refuse_first(
                np.array([text is None for text in value.flat]), "must have a value", name, row_name, model.why_no_gaps
            )
        if name in model.truths and not (same := is_truth(value)).all():
            row = row_name(int(same.argmin()))
            raise malformed(f"must be true or false, or 1 and 0, unlike {row}", name)
        if value.dtype.kind != "f" or (not image and np.isfinite(value).all()):
            continue
        low, high = value.min(), value.max()  # NaN if one is
        if image and not (low >= 0 and high <= 1):
            raise unusable("must be pixels in [0, 1], or uint8 in 0..255 where the format has them", name)
        _refuse_first(np.isinf(value), "must hold a finite number", name, row_name)
        if model.why_no_gaps is not None:
            _refuse_first(np.isnan(value), "must have a value", name, row_name, model.why_no_gaps)
    return rows


def _refuse_first(bad: np.ndarray, what: str, name: str, row_name: RowName, hint: str | None = None) -> None:
    """422 for the first row of which something is bad."""
    if bad.any():
        row = int(bad.reshape(len(bad), -1).any(1).argmax())
        raise unusable(f"{what}, and has none in {row_name(row)}{f'; {hint}' if hint else ''}", name)
