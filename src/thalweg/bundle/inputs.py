"""What a model is given, arrays, frames and files, as rows in its data units."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.data import files
from thalweg.data.alphabet import Alphabet
from thalweg.data.columns.layout import Layout
from thalweg.data.float32_check import COARSE, Float32Transform, check_scored, spacing
from thalweg.data.formats.images import is_image
from thalweg.data.frames import is_frame
from thalweg.data.options import LARGEST_SIZE
from thalweg.data.run_folders import refuse_run
from thalweg.data.stored.encoded_images import parquet_files
from thalweg.data.texts import as_texts, is_text_file, is_texts, read_texts, refuse_containers
from thalweg.data.transform import ROUNDING
from thalweg.data.validate import as_floats, as_tensor, check_cells, check_input, check_shape
from thalweg.energy.outcomes import Conditional

if TYPE_CHECKING:
    import pandas as pd

    from thalweg.bundle.bundle import Bundle


def as_rows(layout: Layout, x: Any, *, where: str = "x", gaps: bool = False) -> Tensor:
    """A frame (pandas, polars, Arrow) by the names of its columns, anything else as an array; not checked further.

    `gaps`: a frame may hold missing values.
    """
    if not is_frame(x):
        return as_tensor(x, where=where)
    values = layout.encode(x, where=where)
    check_cells(values, layout.owners or [*map(str, range(values.shape[1]))], where, gaps=gaps)
    return torch.from_numpy(values)


def checked_rows(bundle: "Bundle", x: Any, *, where: str = "x") -> Tensor:
    """Rows of a model as floats in data units; UserError where they are none, or too coarse for it.

    Of a model of texts a list of str, or codes.
    """
    if bundle.alphabet is not None:
        return _codes(bundle.alphabet, x, where)
    refuse_containers(x, where, f"an array of numbers, as the model's {bundle.kind} data are")
    if is_texts(x) or isinstance(x, str):
        raise UserError(f"must be an array of numbers, as the model's {bundle.kind} data are, not text", argument=where)
    table = bundle.kind == "vector" and is_frame(x)
    found = as_rows(bundle.layout, x, where=where) if table else as_tensor(x, where=where)
    found = check_input(found, bundle.shape, bundle.kind, where=where)
    if isinstance(bundle.model, Conditional):
        outcomes = bundle.model.outcomes
        outcomes.check_columns(found[:, found.shape[1] - outcomes.columns :], f"targets of {where}")
    return fine_enough(bundle, found, where, bundle.layout.singles(x) if table else None)


def decoded_frame(bundle: "Bundle", x: Any) -> "pd.DataFrame":
    """Rows (B, D) in data units as the columns of the table that the model learned; UserError for other data."""
    import pandas as pd

    if bundle.kind != "vector":
        text, hint = f"must be a model of rows; it is one of {bundle.kind} data", "take the samples as they are"
        raise UserError(text, argument=str(bundle.path), hint=hint)
    rows = as_tensor(x)
    check_shape(rows, bundle.shape, "vector", where="x")
    return pd.DataFrame(bundle.layout.decode(rows))


def some_rows(bundle: "Bundle", x: Any, *, where: str = "x") -> Tensor:
    """`checked_rows`, one or more; of texts there may be none there."""
    rows = checked_rows(bundle, x, where=where)
    if not len(rows):
        raise UserError(f"must have one row or more; the shape is {tuple(rows.shape)}", argument=where)
    return rows


def chain_positions(bundle: "Bundle", x: Tensor, *, where: str = "x") -> Tensor:
    """Positions of chains, which may leave the range of the data: the shape alone is checked."""
    if bundle.alphabet is not None:
        text, hint = "must not require a gradient: codes of texts are whole numbers", "give x.detach()"
        raise UserError(text, argument=where, hint=hint)
    check_shape(x, bundle.shape, bundle.kind, where=where)
    return x.to(torch.float32) if bundle.kind == "image" else as_floats(x)


def wants_grad(x: Any) -> bool:
    """Whether x is a tensor whose gradient is asked for, such as the positions of chains."""
    return isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()


def read_rows(
    bundle: "Bundle",
    path: Path,
    *,
    header: bool | None = None,
    drop: Sequence[str] = (),
    skip_bad: bool = False,
) -> files.Rows:
    """The rows of a file for a model; a table's columns are matched by their names, texts become codes, named by
    themselves. `skip_bad`: as `data.files.read_rows` has it."""
    refuse_run(Path(path))
    if bundle.alphabet is not None:
        if skip_bad:
            raise UserError(
                "is for images and rows of numbers, and the model is one of texts",
                argument="skip_bad",
                hint="leave it out",
            )
        texts, codes = read_codes(bundle, path, header=header, drop=drop)
        return files.Rows(codes, files=texts)
    refuse_text_file(bundle, path)
    _refuse_other_kind(bundle, Path(path))
    how: Any = {"header": header, "drop": drop, "layout": bundle.layout, **of_images(bundle)}
    found = files.read_rows(path, skip_bad=skip_bad, **how)
    return found._replace(x=fine_enough(bundle, found.x, str(path), found.singles))


def _refuse_other_kind(bundle: "Bundle", path: Path) -> None:
    """UserError for a CSV, where the model is of images, and for pictures where it is of rows."""
    if bundle.kind == "image" and path.is_file() and files.is_table(path) and not parquet_files(path):
        text, hint = "must hold images, as the model's data are, and is a table", "give a folder, an npy or Parquet"
        raise UserError(text, argument=str(path), hint=hint)
    if bundle.kind == "vector" and (path.is_dir() or (path.is_file() and is_image(path))):
        text = f"must hold rows of {bundle.shape[0]} numbers, as the model's data are, and is "
        raise UserError(f"{text}{'a folder' if path.is_dir() else 'an image'}", argument=str(path), hint="give a file")


def of_images(bundle: "Bundle") -> dict[str, Any]:
    """Keywords of `data.files.read_rows` for a model: the shape of a row, and how its images were read."""
    column = bundle.config.get("run", {}).get("data", {}).get("column")
    return {"shape": bundle.shape, "size": image_size(bundle), "column": column}


def image_size(bundle: "Bundle") -> int | None:
    """The side to which pictures are resized and cropped for a model, as its training data were; None: they are not."""
    size = bundle.config.get("run", {}).get("data", {}).get("size")
    return None if size is None else check.whole("run.data.size", size, 1, LARGEST_SIZE)


def read_codes(
    bundle: "Bundle", path: Path, *, header: bool | None = None, drop: Sequence[str] = ()
) -> tuple[list[str], Tensor]:
    """(texts, codes) of a file, for a model of texts. UserError by its line for a text that the model does not take."""
    if header is not None or drop:
        option = "drop" if header is None else "header"
        raise UserError("is for tables, and the model is one of texts", argument=option, hint="leave it out")
    assert bundle.alphabet is not None
    found = read_texts(path)
    return found.texts, bundle.alphabet.encode(found.texts, where=str(path), lines=found.numbers)


def refuse_text_file(bundle: "Bundle", path: Path) -> None:
    """UserError for a file of texts, where the model is of numbers."""
    if is_text_file(Path(path)):
        text = f"must hold numbers, as the model is one of {bundle.kind} data, and holds texts"
        raise UserError(text, argument=str(path), hint="train a model of texts by `thalweg train FILE.txt`")


def require_numbers(bundle: "Bundle", what: str) -> None:
    """UserError for a model of texts, where only those of images and rows will do."""
    if bundle.kind == "text":
        text = f"must be a model of images or rows for {what}; it is one of texts"
        raise UserError(text, argument=str(bundle.path), hint="`thalweg score` and `thalweg sample` take it")


def _codes(alphabet: Alphabet, x: Any, where: str) -> Tensor:
    if isinstance(x, str):
        raise UserError("must be a list of str, and is one str", argument=where, hint=f"write [{where}]")
    if isinstance(x, list | tuple) and not x:
        return alphabet.encode([], where=where)
    refuse_containers(x, where, "a list of str, or codes")
    if is_texts(x):
        return alphabet.encode(as_texts(x, where), where=where)
    return alphabet.check_codes(as_tensor(x, where=where), where=where)


def fine_enough(bundle: "Bundle", x: Tensor, where: str, singles: Sequence[bool] | None) -> Tensor:
    """The rows; UserError where they, or the columns that are `singles`, came in a float32 that hides their spread."""
    if bundle.dtype == torch.float64 and (x.dtype == torch.float32 or any(singles or ())):
        check_scored(bundle.transform.inner, x, bundle.layout.owners, where, single=singles)
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
