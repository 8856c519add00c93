"""All texts that are one edit away: a letter replaced, put in, taken out, or exchanged with the next one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from thalweg.data.alphabet import FIRST

Codes = tuple[int, ...]  # of the letters of a text, without its ends
KINDS = ("replaced", "put in", "taken out", "exchanged")


class Edit(NamedTuple):
    """A text near another, and what its letters went through to become that other, as a cost in nats.

    The cost is -log r(other | text) for one of the four kinds at even odds, its place and its letter uniform
    (Kernighan, Church & Gale 1990). A writer leaves out one of n letters, but puts one of K - 2 into n + 1 places.
    """

    codes: Codes
    kind: str
    cost: float


def neighbours(codes: Codes, num_states: int, length: int) -> dict[Codes, Edit]:
    """Every other text of at most `length` letters that is one edit away, with the least cost of its edits."""
    n, letters = len(codes), range(FIRST, num_states)
    choices = max(1, len(letters))
    found: dict[Codes, Edit] = {}

    def note(other: Codes, kind: str, ways: int) -> None:
        edit = Edit(other, kind, math.log(len(KINDS) * max(1, ways)))
        if other != codes and (other not in found or edit.cost < found[other].cost):
            found[other] = edit

    for i in range(n):
        note(codes[:i] + codes[i + 1 :], "taken out", n * choices)  # the writer had put it into one of n places
        for letter in letters:
            note((*codes[:i], letter, *codes[i + 1 :]), "replaced", n * choices)
        if i + 1 < n:
            note((*codes[:i], codes[i + 1], codes[i], *codes[i + 2 :]), "exchanged", n - 1)
    for i in range(n + 1) if n < length else ():
        for letter in letters:
            note((*codes[:i], letter, *codes[i:]), "put in", n + 1)  # the writer had left out one of n + 1 letters
    return found


def edited(letters: Sequence[str], codes: Codes, edit: Edit, signs: Sequence[str]) -> list[str]:
    """The letters of a text after an edit of its codes, `signs` those of the codes that the edit leads to.

    Letters that it does not touch stay: those that share the code of unseen letters may differ.
    """
    pairs = enumerate(zip(codes, edit.codes, strict=False))
    i = next((i for i, (old, new) in pairs if old != new), min(len(codes), len(edit.codes)))
    if edit.kind == "replaced":
        return [*letters[:i], signs[i], *letters[i + 1 :]]
    if edit.kind == "put in":
        return [*letters[:i], signs[i], *letters[i:]]
    if edit.kind == "taken out":
        return [*letters[:i], *letters[i + 1 :]]
    return [*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]]
