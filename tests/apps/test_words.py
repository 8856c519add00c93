"""Letters explained and texts repaired, against sums and searches by hand."""

import itertools
import math

import pytest
import torch

from thalweg.apps.words import explain as explaining
from thalweg.apps.words.edits import edited, neighbours
from thalweg.apps.words.explain import explain
from thalweg.core.errors import UserError
from thalweg.data.alphabet import MARK, Alphabet


@pytest.mark.parametrize("text", ["bama", "b", "bbamao", "", "xama"])
def test_the_surprise_of_a_letter_is_that_of_all_letters_in_its_place(words, text):
    (found,) = explain(words, [text])
    letters = words.alphabet.letters
    shown = "".join(c if c in letters else MARK for c in text)
    assert found.text == text
    assert explain(words, words.alphabet.encode([text]))[0].text == shown
    assert found.energy == pytest.approx(float(words.energy([text])), abs=1e-4)
    assert len(found.surprise) == len(found.expected) == len(text)
    for i, letter in enumerate(shown):
        others = {c: text[:i] + c + text[i + 1 :] for c in [*letters, MARK]}
        if i == len(text) - 1:
            others[""] = text[:-1]
        u = dict(zip(others, words.energy([*others.values()]).double().tolist(), strict=True))
        total = math.log(sum(math.exp(-v) for v in u.values()))
        assert found.surprise[i] == pytest.approx(u[letter] + total, abs=1e-3)
        assert found.expected[i] == min((c for c in u if c != MARK), key=u.__getitem__)
    if len(text) == words.shape[0]:
        assert found.end_surprise is None
    else:
        goes_on = [text + c for c in [*letters, MARK]]
        u = words.energy([text, *goes_on]).double()
        assert found.end_surprise == pytest.approx(float(u[0] + torch.logsumexp(-u, 0)), abs=1e-3)
    assert found.worst == (None if not text else max(range(len(text)), key=lambda i: found.surprise[i]))


def one_edit(text, letters, most):
    """All other texts one edit away, by slices of str."""
    found = {text[:i] + text[i + 1 :] for i in range(len(text))}
    found |= {text[:i] + c + text[i + 1 :] for i in range(len(text)) for c in letters}
    found |= {text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in range(len(text) - 1)}
    found |= {text[:i] + c + text[i:] for i in range(len(text) + 1) for c in letters}
    return {other for other in found if other != text and len(other) <= most}


@pytest.mark.parametrize("text", ["bma", "bamma", "bmaa", "lxna", "bbamao"])
def test_the_repair_has_the_lowest_energy_of_all_within_one_edit(words, text):
    (found,) = words.explain([text])
    letters = words.alphabet.letters
    candidates = sorted(one_edit(text, letters, words.shape[0]))
    u = words.energy(candidates)
    assert found.repair == candidates[int(u.argmin())]
    assert found.repair_energy == pytest.approx(float(u.min()), abs=1e-4)
    assert len(found.edits) == 1
    (two,) = explain(words, [text], edits=2, beam=len(candidates))
    further = sorted({t for c in candidates for t in one_edit(c, letters, words.shape[0])} - {text} | set(candidates))
    assert two.repair_energy == pytest.approx(float(words.energy(further).min()), abs=1e-4)


def test_letters_that_no_edit_touches_stay_as_they_were_typed():
    """Every edit of codes, done to letters: the letters of other texts with the same codes differ in unseen ones."""
    alphabet = Alphabet("abc", 5)
    for text in ("a\u2603b\u2604", "\u2603\u2604", "\u2603", "aab", ""):
        codes = tuple(int(c) for c in alphabet.encode([text])[0] if c)
        for other, edit in neighbours(codes, alphabet.num_states, 5).items():
            found = "".join(edited(text, codes, edit, alphabet.decode(torch.tensor(other).float()[:, None])))
            assert tuple(int(c) for c in alphabet.encode([found])[0] if c) == other
            unseen = [c for c in found if c in "\u2603\u2604"]
            assert len(unseen) == other.count(1)
            assert MARK not in found
            kept = [c for c in text if c in "\u2603\u2604"]
            assert len(unseen) < len(kept) or unseen == kept


def test_a_repair_keeps_unseen_letters(words):
    for found in words.explain(["b\u2603ma", "\u2603\u2604\u2603\u2604\u2603"], edits=2):
        assert MARK not in found.text + found.repair


def test_the_cost_of_an_edit_is_that_of_the_typing_error():
    """-log of the chance that the writer of the repair made the text: by counting all errors of the writer."""
    num_states, length = 5, 4
    for codes in itertools.chain.from_iterable(itertools.product((2, 3, 4), repeat=n) for n in (1, 2, 3)):
        for other, edit in neighbours(codes, num_states, length).items():
            back = neighbours(other, num_states, length)
            assert codes in back
            n, k = len(other), num_states - 2
            ways = {"replaced": n * k, "put in": n, "taken out": (n + 1) * k, "exchanged": n - 1}
            assert edit.cost == pytest.approx(math.log(4 * ways[edit.kind]))


def test_the_channel_prefers_what_a_writer_is_likelier_to_mistype(words):
    """A repair that puts a letter in costs log K less than one that takes one out; the energies are as they were."""
    text = "bamma"
    (plain,), (channel,) = explain(words, [text]), explain(words, [text], channel=True)
    costs = neighbours(tuple(int(c) for c in words.alphabet.encode([text])[0] if c), words.alphabet.num_states, 6)
    u = {c: float(v) for c, v in zip(costs, explaining.CachedEnergies(words)([*costs]), strict=True)}
    best = min(costs, key=lambda c: u[c] + costs[c].cost)
    assert channel.repair_energy == pytest.approx(u[best], abs=1e-4)
    assert plain.repair_energy <= channel.repair_energy + 1e-6


def test_rows_do_not_depend_on_each_other(words):
    texts = ["bama", "lxna", "", "gusi"]
    together = explain(words, texts)
    for text, found in zip(texts, together, strict=True):
        (alone,) = explain(words, words.alphabet.encode([text]))
        assert alone.repair == found.repair
        assert alone.surprise == pytest.approx(found.surprise, abs=1e-3)
    assert explain(words, words.alphabet.encode(["bama"])[:0]) == explain(words, []) == []


def test_what_cannot_be_explained_is_refused(words, plane):
    with pytest.raises(UserError, match="texts"):
        plane.explain(torch.zeros(1, 2))
    for options in ({"edits": 0}, {"edits": 3}, {"beam": 0}, {"channel": "yes"}, {"channel": 1}):
        with pytest.raises(UserError) as caught:
            words.explain(["bama"], **options)
        assert caught.value.argument in options
