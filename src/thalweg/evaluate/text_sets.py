"""Texts that are not data, to be told from it: typing errors, shuffled letters; and which training text is nearest."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

TRIES = 20  # until an alteration gives a text that is not known


class AlteredTexts(NamedTuple):
    """AlteredTexts texts, and which text each was made of."""

    texts: list[str]
    origin: np.ndarray


def typos(texts: Sequence[str], known: Collection[str], rng: np.random.Generator, *, most: int) -> AlteredTexts:
    """Each text with one letter left out, put in or replaced, or two neighbours swapped, in equal shares.

    Letters are drawn as often as the texts have them. A text that cannot be altered into one outside of `known`, of at
    most `most` letters, is left out.
    """
    counts = Counter("".join(texts))
    letters, share = list(counts), np.array([*counts.values()], float)
    share /= share.sum()

    def one(text: str) -> str:
        i = int(rng.integers(len(text) + 1))
        letter = letters[int(rng.choice(len(letters), p=share))]
        ways = (
            text[:i] + text[i + 1 :],
            text[:i] + letter + text[i:],
            text[:i] + letter + text[i + 1 :],
            text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :],
        )
        return ways[int(rng.integers(4))]

    return _altered(texts, known, one, most)


def shuffled(texts: Sequence[str], known: Collection[str], rng: np.random.Generator) -> AlteredTexts:
    """Each text with its letters in another order; left out where every order is known."""
    return _altered(texts, known, lambda text: "".join(text[i] for i in rng.permutation(len(text))), None)


def _altered(texts: Sequence[str], known: Collection[str], one: Callable[[str], str], most: int | None) -> AlteredTexts:
    found, origin = [], []
    for i, text in enumerate(texts):
        for _ in range(TRIES):
            other = one(text)
            if other and other not in known and (most is None or len(other) <= most):
                found.append(other)
                origin.append(i)
                break
    return AlteredTexts(found, np.array(origin, int))


def nearest_texts(texts: Sequence[str], train: Sequence[str]) -> list[tuple[str, int]]:
    """(the training text with the fewest edits, how many) of each text: left out, put in or replaced letters.

    The first of several (Levenshtein 1966). len(text) L operations on all distinct training texts at once.
    """
    distinct = list(dict.fromkeys(train))
    lengths = np.array([len(text) for text in distinct])
    codes = np.zeros((int(lengths.max(initial=1)), len(distinct)), np.int32)
    for i, text in enumerate(distinct):
        codes[: len(text), i] = [ord(letter) for letter in text]
    found = []
    for text in texts:
        row = np.repeat(np.arange(len(codes) + 1, dtype=np.int32)[:, None], len(distinct), 1)
        for letter in text:
            replaced = row[:-1] + (codes != ord(letter))
            row = np.concatenate([row[:1] + 1, np.minimum(replaced, row[1:] + 1)])
            for j in range(1, len(row)):
                np.minimum(row[j], row[j - 1] + 1, out=row[j])
        edits = row[lengths, np.arange(len(distinct))]
        best = int(edits.argmin())
        found.append((distinct[best], int(edits[best])))
    return found
