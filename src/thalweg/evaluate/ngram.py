"""An n-gram model of letters: the simple, normalised law of texts that figures of an energy are printed beside.

    p(text) = prod_i p(x_i | the n - 1 letters before),    with an end after the last letter.

Interpolated Kneser-Ney (Kneser & Ney 1995; Chen & Goodman 1999, section 2.7): with h a context and h' without its first
letter

    p(c | h) = max(n(h c) - D, 0) / n(h) + D T(h) / n(h) p(c | h').

T(h) counts the letters that follow h. In all but the longest contexts n counts what precedes: in how many different
contexts a letter was seen. D = n_1 / (n_1 + 2 n_2), of the contexts seen once and twice.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from thalweg.core import check

START, END = "\x02", "\x03"  # beside the letters of a text


class NGram:
    """Log-probabilities and draws of texts.

    Args:
        order: n; 2 is the law in which each letter depends on the one before.
    """

    def __init__(self, *, order: int = 6):
        check.count(order=order)
        self.order = order
        self.letters: list[str] = []
        self._counts: list[dict[str, Counter[str]]] = []  # by the length of the context, then by the context
        self._totals: list[dict[str, int]] = []
        self._discounts: list[float] = []

    def fit(self, texts: Iterable[str]) -> Self:
        """Count the letters of training texts; repeated texts count as often as they come."""
        found: list[defaultdict[str, Counter[str]]] = [defaultdict(Counter) for _ in range(self.order)]
        letters: set[str] = set()
        for text in texts:
            letters |= set(text)
            padded = START * (self.order - 1) + text + END
            for i in range(self.order - 1, len(padded)):
                found[-1][padded[i - self.order + 1 : i]][padded[i]] += 1
        for k in range(self.order - 2, -1, -1):  # how many letters precede
            for context, counts in found[k + 1].items():
                found[k][context[1:]].update(dict.fromkeys(counts, 1))
        self.letters = [END, *sorted(letters)]
        self._counts = [dict(each) for each in found]
        self._totals = [{context: c.total() for context, c in each.items()} for each in found]
        self._discounts = [_discount(each.values()) for each in found]
        return self

    def log_prob(self, texts: Sequence[str]) -> np.ndarray:
        """log p of texts, (n,) nats. A letter that no training text has shares what is left of the single letters."""
        known: dict[str, float] = {}

        def log_p(gram: str) -> float:
            if gram not in known:
                known[gram] = math.log(self._prob(gram[-1], gram[:-1]))
            return known[gram]

        n = self.order - 1
        padded = [START * n + text + END for text in texts]
        return np.array([sum(log_p(text[i - n : i + 1]) for i in range(n, len(text))) for text in padded])

    def draws(self, count: int, rng: np.random.Generator, *, most: int) -> list[str]:
        """Texts of at most so many letters: one that reaches it is cut."""
        laws: dict[str, np.ndarray] = {}
        found = []
        for _ in range(count):
            text = START * (self.order - 1)
            while len(text) < most + self.order - 1:
                context = text[len(text) - self.order + 1 :]
                if context not in laws:
                    laws[context] = np.cumsum([self._prob(letter, context) for letter in self.letters])
                law = laws[context]
                letter = self.letters[min(int(np.searchsorted(law, rng.random() * law[-1])), len(law) - 1)]
                if letter == END:
                    break
                text += letter
            found.append(text[self.order - 1 :])
        return found

    def _prob(self, letter: str, context: str) -> float:
        p = 1 / (len(self.letters) + 1)  # one more for all unseen letters
        for k in range(len(context) + 1):
            tail = context[len(context) - k :]
            counts = self._counts[k].get(tail)
            if counts is None:
                break
            discount, total = self._discounts[k], self._totals[k][tail]
            p = (max(counts[letter] - discount, 0) + discount * len(counts) * p) / total
        return p


def _discount(counts: Iterable[Counter[str]]) -> float:
    """D; between 0.1 and 0.9, since counts of few texts may give 0 or 1."""
    seen = Counter(n for each in counts for n in each.values() if n <= 2)
    once, twice = seen[1], seen[2]
    return min(max(once / (once + 2 * twice), 0.1), 0.9) if once else 0.1
