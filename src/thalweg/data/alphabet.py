"""The letters of texts as numbers: each text becomes a row of codes of one length.

0 is the end of a text and all that follows it, 1 a letter that no training text has, 2 and up the letters by code
point. A letter is a code point of a text in the normal form NFC, in which an accented letter is one where it can be.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError, kind_of

END, UNSEEN = 0, 1
FIRST = 2  # the code of the first letter
MARK = "\N{REPLACEMENT CHARACTER}"  # stands for an unseen letter in decoded texts, and so is none of the letters
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # no letters: a terminal acts on them; a tab is one
MOST_LETTERS = 65_536  # of a length, or of an alphabet: one-hot rows of more fit no memory


@dataclass(frozen=True)
class Alphabet:
    """The letters that training texts have, and how many of them a row takes.

    Args:
        letters: Each letter once, by code point.
        length: L, the most letters of a text.
    """

    letters: str
    length: int

    def __post_init__(self):
        check.whole("length", self.length, 1, MOST_LETTERS)
        if not isinstance(self.letters, str) or not 0 < len(self.letters) <= MOST_LETTERS:
            raise UserError(f"must be a text of 1 to {MOST_LETTERS:,} letters", argument="letters")
        if any(a >= b for a, b in zip(self.letters, self.letters[1:], strict=False)):
            raise UserError("must have each letter once, in the order of code points", argument="letters")
        if MARK in self.letters or any("\ud800" <= letter <= "\udfff" for letter in self.letters):
            raise UserError("must be characters of Unicode, without U+FFFD", argument="letters")
        if (sign := control_character(self.letters)) is not None:
            raise UserError(f"must have no control character or line separator, and has {sign}", argument="letters")

    @classmethod
    def fit(cls, texts: Iterable[str], length: int | None = None) -> Self:
        """The letters of these texts. `length`: L; None: `with_room` of the longest."""
        texts = [normal(text) for text in texts]
        letters = "".join(sorted({letter for text in texts for letter in text} - {MARK}))
        if not letters:
            raise UserError("must have a letter", argument="texts", hint="give texts that are not empty")
        return cls(letters, with_room(max(map(len, texts))) if length is None else length)

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """The alphabet that `to_dict` wrote, maybe by a stranger; UserError unless it has that form."""
        if not isinstance(stored, dict) or stored.keys() != {"letters", "length"}:
            raise UserError("must be a mapping with letters and length", argument="alphabet")
        return cls(stored["letters"], stored["length"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"letters": self.letters, "length": self.length}

    @property
    def num_states(self) -> int:
        """K: the letters, the end and the unseen letter."""
        return len(self.letters) + FIRST

    def encode(
        self, texts: Sequence[str], *, where: str = "texts", lines: Sequence[int] | None = None
    ) -> Float[Tensor, "n l"]:
        """Codes (N, L), float32 whole numbers 0 … K - 1.

        Args:
            texts: One text a row. Their normal form NFC is taken, and nothing is stripped.
            where: The argument or the file, for errors.
            lines: The number of each text's line, where they come from a file.

        Raises:
            UserError: A text has more than L letters, or is none.
        """
        require_texts(texts, where)
        codes = np.zeros((len(texts), self.length), np.float32)
        for i, text in enumerate(texts):
            text = normal(text)
            if len(text) > self.length:
                raise self._too_long(text, i, where, lines)
            codes[i, : len(text)] = [self._codes.get(letter, UNSEEN) for letter in text]
        return torch.from_numpy(codes)

    def decode(self, codes: Float[Tensor, "n l"]) -> list[str]:
        """The texts of codes, each up to its first 0; U+FFFD stands for an unseen letter."""
        signs = ["", MARK, *self.letters]
        rows = codes.detach().cpu().to(torch.int64).tolist()
        ends = [row.index(END) if END in row else len(row) for row in rows]
        return ["".join(signs[code] for code in row[:end]) for row, end in zip(rows, ends, strict=True)]

    def check_codes(self, x: Tensor, *, where: str = "x") -> Float[Tensor, "n l"]:
        """Codes of a caller as float32; UserError unless they are what `encode` may give."""
        if x.ndim != 2 or x.shape[1] != self.length or x.is_complex():
            condition = f"must be texts, or codes of the shape (N, {self.length}); it has {tuple(x.shape)}"
            raise UserError(condition, argument=where)
        whole = (x >= 0) & (x < self.num_states) & (x == x.round() if x.is_floating_point() else True)
        if not bool(whole.all()):
            raise UserError(f"must be whole numbers from 0 to {self.num_states - 1}", argument=where)
        if bool(((x[:, :-1] == END) & (x[:, 1:] != END)).any()):
            row = int(((x[:, :-1] == END) & (x[:, 1:] != END)).any(1).nonzero()[0])
            text = (
                f"must have only 0 after the first 0, the end of a text; row {row} (counted from 0) has a letter there"
            )
            raise UserError(text, argument=where, hint="give the texts themselves")
        return x.to(torch.float32)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {letter: i for i, letter in enumerate(self.letters, FIRST)}

    def _too_long(self, text: str, i: int, where: str, lines: Sequence[int] | None) -> UserError:
        which = f"{where}[{i}]" if lines is None else f"{where}, line {lines[i]}"
        condition = f"has {len(text):,} letters, and the model takes {self.length}"
        hint = "shorten it"
        if len(text) <= MOST_LETTERS:
            hint += f", or train with data.length={len(text)}"
        return UserError(condition, argument=which, value=shortened(text), hint=hint, row=i)


def normal(text: str) -> str:
    """The normal form NFC: an accent that can be part of its letter is."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def control_character(text: str) -> str | None:
    """The first control character or line separator of a text, as U+0000; None where it has none."""
    found = CONTROL.search(text)
    return None if found is None else f"U+{ord(found[0]):04X}"


def with_room(longest: int) -> int:
    """The length of a model of texts of up to so many letters: an eighth more, and two at least.

    So that a new text, such as a word with a letter too many, can be scored.
    """
    return longest + max(2, longest // 8)


def shortened(text: str) -> str:
    """A text for a message."""
    return text if len(text) <= 40 else text[:37] + "…"


def require_texts(texts: Sequence[Any], where: str) -> None:
    """UserError about the first that is no str which UTF-8 can hold."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"must be a str; it is {kind_of(text)}", argument=f"{where}[{i}]")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError("must be text that UTF-8 can hold, without half a surrogate pair", argument=f"{where}[{i}]")
