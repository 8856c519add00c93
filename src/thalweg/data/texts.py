"""Texts to train on, from a file or from memory: checked, before they become codes."""

from collections.abc import Sequence
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
    """Whether rows in memory are texts: a list, a tuple or an array whose first item is a str."""
    if isinstance(data, np.ndarray):
        return data.dtype.kind == "U" or (data.dtype.kind == "O" and data.ndim == 1 and is_texts(data.tolist()))
    return isinstance(data, list | tuple) and len(data) > 0 and isinstance(data[0], str)


def as_texts(data: Any, where: str) -> list[str]:
    """Texts in memory as a list; UserError for anything else among them."""
    if isinstance(data, np.ndarray):
        data = data.tolist()
    if not isinstance(data, list | tuple):
        raise UserError(f"must be a list of str; it is {kind_of(data)}", argument=where)
    require_texts(data, where)
    return list(data)


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


def require_alike(texts: Sequence[str], length: int | None, where: str, lines: Sequence[int] | None = None) -> None:
    """UserError about the first text that a model of this length does not take.

    Without a length the longest text sets it, and with it the cost of every other: a text far longer than nearly all
    others is refused then.
    """
    if length is not None:
        check.whole("data.length", length, 1, MOST_LETTERS)
    lengths = np.array([len(text) for text in texts])
    usual = int(np.quantile(lengths, 0.99, method="lower"))
    most = max(FAR * usual, LEAST_FAR) if length is None else length
    longer = np.flatnonzero(lengths > min(most, MOST_LETTERS))
    if not len(longer):
        return
    i = int(longer[0])
    which = f"{where}[{i}]" if lines is None else f"{where}, line {lines[i]}"
    others = f"; so have {len(longer) - 1:,} others" if len(longer) > 1 else ""
    hint = "remove it" if lines is None else f"remove it, or give data.length={lengths.max()}"
    if length is not None:
        what = f"has {lengths[i]:,} letters, more than data.length={length}{others}"
    else:
        what = f"has {lengths[i]:,} letters, far more than the others: 99 % have {usual} or fewer"
    raise UserError(what, argument=which, value=shortened(texts[i]), hint=hint)
