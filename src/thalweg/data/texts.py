"""Texts to train on, from a file or from memory: checked, before they become codes."""

from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.core import check
from thalweg.core.errors import UserError, kind_of
from thalweg.data.alphabet import MOST_LETTERS, control_character, normal, require_texts, shortened
from thalweg.data.formats.base import format_of
from thalweg.data.formats.text import Lines, TextLines
from thalweg.data.validate import LEAST_ROWS

FAR, LEAST_FAR = 4, 64  # a text is far longer than the others beyond 4 times the length of 99 % of them, and 64 letters


def is_text_file(path: Path) -> bool:
    """Whether a file's ending is that of texts."""
    return isinstance(format_of(path), TextLines)


def read_texts(path: Path) -> Lines:
    """The texts of a file; UserError for a file of another kind."""
    found = format_of(path)
    if not isinstance(found, TextLines):
        hint = f"write one text a line into a {' or '.join(TextLines.suffixes)} file"
        raise UserError("is no file of texts", argument=str(path), hint=hint)
    return found.read(path)


def is_texts(data: Any) -> bool:
    """Whether rows in memory are meant as texts: a list, a tuple, an array (N,) or a Series, with a str or bytes in it.

    Not all need be: `as_texts` says which is none.
    """
    return any(isinstance(item, str | bytes) for item in _items(data) or ())


def as_texts(data: Any, where: str) -> list[str]:
    """Texts in memory as a list; UserError for anything else among them."""
    refuse_containers(data, where, "a list of str")
    items = _items(data)
    if items is None:
        raise UserError(f"must be a list of str; it is {kind_of(data)}", argument=where)
    require_texts(items, where)
    return items


def refuse_containers(data: Any, where: str, want: str) -> None:
    """UserError for what is empty, has no order or is read only once, and for lists and arrays of lists of texts."""
    if isinstance(data, Set | Iterator | ValuesView):
        raise UserError(f"must be {want}; it is {kind_of(data)}", argument=where, hint=f"give list({where})")
    if isinstance(data, Mapping):
        raise UserError(f"must be {want}; it is {kind_of(data)}", argument=where)
    if _items(data) == []:
        raise UserError(f"must be {want}, and not empty", argument=where)
    if isinstance(data, np.ndarray) and data.ndim != 1 and _has_texts(data):
        raise UserError(f"must be {want}; it is an array {data.shape} with texts", argument=where)
    if isinstance(data, list | tuple):
        for i, item in enumerate(data):
            if isinstance(item, list | tuple) and any(isinstance(part, str | bytes) for part in item):
                raise UserError(f"must be {want}; item {i} is {kind_of(item)} with texts", argument=where)


def _has_texts(x: np.ndarray) -> bool:
    return x.dtype.kind in "US" or (x.dtype.kind == "O" and any(isinstance(item, str | bytes) for item in x.flat))


def _items(data: Any) -> list[Any] | None:
    """The items of what may hold texts; None for anything else, as for arrays of numbers."""
    if isinstance(data, list | tuple):
        return list(data)
    if isinstance(data, np.ndarray):
        return data.tolist() if data.ndim == 1 and data.dtype.kind not in "biufcmM" else None
    if hasattr(data, "to_list") and hasattr(data, "dtype"):  # a Series of pandas or polars
        return list(data.to_list())
    return None


def given_texts(data: Any, where: str) -> list[str]:
    """Texts in memory to train on, in the normal form NFC. UserError for one that a line of a file cannot hold."""
    texts = [normal(text) for text in as_texts(data, where)]
    for i, text in enumerate(texts):
        if not text:
            raise UserError("must not be empty", argument=f"{where}[{i}]", hint="leave it out")
        if (sign := control_character(text)) is not None:
            what = f"must be one line, without control characters, and holds {sign}"
            raise UserError(what, argument=f"{where}[{i}]", value=shortened(text), hint="split or replace them")
    return texts


def require_trainable(texts: Sequence[str], where: str) -> None:
    """UserError for fewer texts than a training and a held-out part need."""
    if len(texts) < LEAST_ROWS:
        found = "1 text" if len(texts) == 1 else f"{len(texts)} texts"
        raise UserError(f"holds {found}, training needs at least {LEAST_ROWS}", argument=where, hint="give more")


def require_alike(
    texts: Sequence[str],
    length: int | None,
    where: str,
    lines: Sequence[int] | None = None,
    usual_of: Sequence[str] | None = None,
) -> None:
    """UserError about the first text that a model of this length does not take.

    Without a length the longest text sets it, and with it the cost of every other: a text far longer than nearly all
    others is refused then. The others are `usual_of`, as for held-out texts the training texts; None: `texts`.
    """
    if length is not None:
        check.whole("data.length", length, 1, MOST_LETTERS)
    lengths = np.array([len(text) for text in texts])
    others = lengths if usual_of is None else [len(text) for text in usual_of]
    usual = int(np.quantile(others, 0.99, method="lower"))
    most = max(FAR * usual, LEAST_FAR) if length is None else length
    longer = np.flatnonzero(lengths > min(most, MOST_LETTERS))
    if not len(longer):
        return
    i = int(longer[0])
    which = f"{where}[{i}]" if lines is None else f"{where}, line {lines[i]}"
    more = f"; so have {len(longer) - 1:,} others" if len(longer) > 1 else ""
    hint = "remove it" if len(longer) == 1 else "remove them"
    if lines is not None and lengths.max() <= MOST_LETTERS:  # an option of files, and refused above
        give = f"give data.length={lengths.max()}"
        hint = f"{hint}, or {give}" if len(longer) == 1 else give
    if length is not None:
        what = f"has {lengths[i]:,} letters, more than data.length={length}{more}"
    else:
        what = f"has {lengths[i]:,} letters, far more than the others: 99 % have {usual} or fewer{more}"
    raise UserError(what, argument=which, value=shortened(texts[i]), hint=hint)
