"""Figures of texts: the n-gram law, the sets to be told from data, and a whole evaluation of a known law."""

import itertools
import math

import numpy as np
import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.data.alphabet import Alphabet
from thalweg.evaluate.ngram import END, NGram
from thalweg.evaluate.report import write_report
from thalweg.evaluate.text_sets import nearest_texts, shuffled, typos
from thalweg.evaluate.texts import evaluate_texts

WORDS = ["".join(p) for p in itertools.product("bdfg", "aeiou", "lmnrst", "ao")]  # 240


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_an_ngram_law_sums_to_one_after_any_context(order: int) -> None:
    law = NGram(order=order).fit(["abba", "ab", "ba", "ab"])
    assert law.letters == [END, "a", "b"]
    for context in ("", "a", "ab", "bb", "zz"):
        tail = context[-(order - 1) :] if order > 1 else ""
        total = sum(law._prob(letter, tail) for letter in [*law.letters, "z"])  # one letter for all unseen ones
        assert total == pytest.approx(1, abs=1e-12)


def test_a_law_of_short_texts_sums_to_one() -> None:
    """The sum over all texts of up to 8 letters is below 1, and what is left is small where texts are short."""
    law = NGram(order=3).fit(["a", "b", "ab", "a", "ba"] * 4)
    texts = ["".join(p) for n in range(9) for p in itertools.product("abz", repeat=n)]
    total = float(np.exp(law.log_prob(texts)).sum())
    assert 0.97 < total <= 1


def test_a_letter_that_follows_one_other_alone_is_rare_elsewhere() -> None:
    """Kneser and Ney's point: u is frequent, but only after q; by counts it would be the likeliest letter of all."""
    law = NGram(order=2).fit(["qu"] * 9 + ["a", "b", "ab", "ba"])
    counts = law._counts[0][""]  # contexts a letter was seen in: q, a and b begin; u after q; the end after u, a, b
    assert dict(counts) == {"q": 1, "u": 1, "a": 2, "b": 2, END: 3}
    discount = law._discounts[0]
    assert law._prob("u", "") == pytest.approx((1 - discount + discount * 5 / 6) / 9)
    assert law._prob("u", "a") < law._prob("b", "a")
    assert law._discounts[1] == 2 / (2 + 2 * 4)  # ab and ba once; four pairs twice


def test_draws_follow_the_law() -> None:
    law, n = NGram(order=2).fit(["ab", "abb", "b"] * 5), 4000
    drawn = law.draws(n, np.random.default_rng(0), most=12)
    for text in ("ab", "b", "abb"):
        p = float(np.exp(law.log_prob([text])[0]))
        assert abs(drawn.count(text) / n - p) < 5 * math.sqrt(p / n)
    wrong = float(np.exp(NGram(order=2).fit(["ab", "abb", "b", "b"] * 5).log_prob(["b"])[0]))
    assert abs(drawn.count("b") / n - wrong) > 5 * math.sqrt(wrong / n)  # the mutant
    assert max(map(len, law.draws(50, np.random.default_rng(0), most=1))) <= 1


def test_a_longer_context_tells_words_better() -> None:
    order = np.random.default_rng(0).permutation(len(WORDS))
    train, rest = [WORDS[i] for i in order[:120]], [WORDS[i] for i in order[120:]]
    one, two = (NGram(order=n).fit(train).log_prob(rest).mean() for n in (1, 2))
    assert two > one


def test_altered_texts_are_never_known_and_say_what_they_were() -> None:
    known, rng = {*WORDS}, np.random.default_rng(0)
    found = typos(WORDS, known, rng, most=5)
    assert not known & {*found.texts}
    assert len(found.texts) > 0.9 * len(WORDS)
    for text, i in zip(found.texts, found.origin, strict=True):
        assert abs(len(text) - 4) <= 1
        assert nearest_texts([text], [WORDS[i]])[0][1] <= 2  # a swap is two edits
    mixed = shuffled(WORDS, known, rng)
    assert not known & {*mixed.texts}
    assert all(sorted(text) == sorted(WORDS[i]) for text, i in zip(mixed.texts, mixed.origin, strict=True))
    assert shuffled(["aaa"], {"aaa"}, rng).texts == []


def test_the_nearest_text_takes_the_fewest_edits() -> None:
    train = ["kitten", "sitting", "", "kitten"]
    assert nearest_texts(["sittin", "kitten", "xy", ""], train) == [("sitting", 1), ("kitten", 0), ("", 2), ("", 0)]
    assert nearest_texts(["saturday"], ["sunday"]) == [("sunday", 3)]


class Law:
    """The words themselves, each with its share of a law, and any other text with what is left."""

    shape = (6,)

    def __init__(self, normalised: bool = True):
        self.alphabet, self.normalised = Alphabet.fit(WORDS, 6), normalised

    def energy(self, x: list[str]) -> torch.Tensor:
        return torch.tensor([6.0 if text in WORDS else 30.0 for text in x])

    def log_prob(self, x: list[str]) -> torch.Tensor:
        from thalweg.core.errors import NotNormalised

        if not self.normalised:
            raise NotNormalised("no")
        return -self.energy(x)

    def sample(self, n: int, *, seed: int = 0) -> torch.Tensor:
        return self.alphabet.encode([WORDS[(seed + i) % len(WORDS)] for i in range(n)])

    def texts(self, codes: torch.Tensor) -> list[str]:
        return self.alphabet.decode(codes)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_law_that_knows_the_words_is_told_so(tmp_path, normalised: bool) -> None:
    figures, pictures = evaluate_texts(Law(normalised), train=WORDS[:200], held_out=WORDS[200:], num_samples=60)
    assert [row["auroc"] for row in figures["detection"]] == [1, 1, 1]
    assert figures["detection"][0]["bigram_auroc"] < 1
    assert figures["detection"][0]["paired"] == 1
    assert figures["samples"]["samples"]["training"] == 1
    assert figures["samples"]["real"]["held_out"] == 1
    assert figures["sample_table"][0] == {
        "text": WORDS[0],
        "energy": 6.0,
        "nearest": WORDS[0],
        "edits": 0,
        "note": "training",
    }
    assert (figures["likelihood"] is None) != normalised
    if normalised:
        assert figures["likelihood"]["nats"] == -6
        assert figures["likelihood"]["nats_bigram"] < -6
    page = write_report(tmp_path / "r.html", title="t", command="c", figures=figures, pictures=pictures).read_text()
    assert WORDS[0] in page
    assert "bigram law" in page


def test_too_few_held_out_texts_are_refused() -> None:
    with pytest.raises(UserError, match="20 texts"):
        evaluate_texts(Law(), train=WORDS[:200], held_out=WORDS[:5])
