"""The body of a request on the plain routes as rows of a model: JSON, npy, CSV, or one picture."""

from typing import Any, NamedTuple

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from thalweg.core.errors import row_from_zero
from thalweg.serve.errors import HttpError, malformed
from thalweg.serve.inputs.conform import RowName, check_values
from thalweg.serve.inputs.csv_rows import of_csv
from thalweg.serve.inputs.instances import instance, of_instances
from thalweg.serve.inputs.npy import of_array, read_npy
from thalweg.serve.inputs.pictures import MAGIC, of_picture
from thalweg.serve.inputs.strict_json import Parsed, parse_object
from thalweg.serve.models import ServedModel
from thalweg.serve.settings import ServeSettings

JSON = "application/json"
NPY = "application/x-npy"
CSV = "text/csv"
PICTURES = tuple(MAGIC)
UTF8 = ("utf-8", "utf8", "us-ascii", "ascii")  # charsets whose bytes are UTF-8
QUERY = ("model", "top", "encoding", "fit")  # parameters that routes have in the query alone
INLINE = 65_536  # bytes that are read where the request is; more go to a thread, so that others are not delayed


class Rows(NamedTuple):
    """Inputs by name, what else the body said, and what messages call a row."""

    rows: dict[str, np.ndarray]
    options: dict[str, Any]
    row_name: RowName = row_from_zero


def media_of(request: Request, *taken: str) -> str:
    """The content type, which must be one of these; 415 for others, and where none is declared."""
    declared = request.headers.get("content-type", "")
    media = declared.partition(";")[0].strip().lower()
    if media not in taken:
        raise _unsupported(f"must have the content type {' or '.join(taken)}")
    require_utf8(declared)
    return media


def require_utf8(declared: str) -> None:
    """415 for JSON or CSV whose content type declares another charset than UTF-8, of which ASCII is a part."""
    media, *parameters = declared.lower().split(";")
    if media.strip() not in (JSON, CSV):
        return
    for name, _, value in (one.partition("=") for one in parameters):
        charset = value.strip().strip('"')
        if name.strip() == "charset" and charset not in UTF8:
            raise _unsupported(f"must be UTF-8, not {charset[:40]}; send the body as UTF-8, or leave the charset out")


def _unsupported(text: str) -> HttpError:
    return HttpError(415, "unsupported_media_type", text, field="content-type")


async def json_body(request: Request, settings: ServeSettings) -> Parsed:
    """The JSON object that the body is."""
    media_of(request, JSON)
    data = await request.body()
    if len(data) <= INLINE:
        return parse_object(data, settings.max_depth)
    return await run_in_threadpool(parse_object, data, settings.max_depth)


async def read(
    request: Request, model: ServedModel, settings: ServeSettings, options: tuple[str, ...], *, fit: bool = False
) -> Rows:
    """The rows; `options` are the keys that JSON may have beside `instances`."""
    media = media_of(request, JSON, NPY, CSV, *PICTURES)
    data = await request.body()

    if len(data) <= INLINE and media not in PICTURES:
        return rows_of(media, data, model, settings, options)
    return await run_in_threadpool(rows_of, media, data, model, settings, options, fit=fit)


def rows_of(
    media: str,
    data: bytes,
    model: ServedModel,
    settings: ServeSettings,
    options: tuple[str, ...],
    *,
    fit: bool = False,
) -> Rows:
    """A body of this content type as rows, checked."""
    found = _read(media, data, model, settings, options, fit)
    check_values(model, found.rows, found.row_name)
    return found


def _read(
    media: str, data: bytes, model: ServedModel, settings: ServeSettings, options: tuple[str, ...], fit: bool
) -> Rows:
    if media in PICTURES:
        return Rows(of_picture(model, data, media, fit=fit, max_pixels=settings.max_pixels), {})
    if media == NPY:
        return Rows(of_array(model, read_npy(data), settings.max_batch), {})
    if media == CSV:
        rows, line = of_csv(model, data, settings.max_batch)
        return Rows(rows, {}, line)
    value, literals = parse_object(data, settings.max_depth)
    require_keys(value, ("instances", *options), ("instances",))
    rows = of_instances(model, value.pop("instances"), literals, settings.max_batch)
    return Rows(rows, value, instance)


def require_keys(value: dict[str, Any], known: tuple[str, ...], needed: tuple[str, ...] = ()) -> None:
    """400 for a key that is missing, or that the route does not know."""
    missing = next((name for name in needed if name not in value), None)
    if missing is not None:
        raise malformed("must be there", missing)
    extra = next((name for name in value if name not in known), None)
    if extra is not None:
        place = f", or stand in the query where the route has it, as ?{extra}=…" if extra in QUERY else ""
        raise malformed(f"must be one of the keys {', '.join(known)}{place}", extra[:80])
