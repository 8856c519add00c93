import json
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.core import config
from thalweg.core.errors import UserError
from thalweg.data.alphabet import END, MARK, UNSEEN, Alphabet
from thalweg.data.catalog import load
from thalweg.data.files import read_array
from thalweg.data.in_memory import given_dataset
from thalweg.data.options import DataOptions
from thalweg.data.texts import read_texts
from thalweg.data.transform import OneHot

WORDS = [a + b + c for a in "bdfgl" for b in "aeio" for c in ("t", "n", "ss")]  # 60
letters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029")
texts = st.lists(st.text(letters, max_size=12), min_size=1, max_size=6)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(train=texts.filter(lambda t: any(set(s) - {MARK} for s in t)), other=texts)
@settings(max_examples=60, deadline=None)
def test_any_text_survives_but_for_letters_that_no_training_text_has(train: list[str], other: list[str]) -> None:
    alphabet = Alphabet.fit(train, 40)
    for some in (train, other):
        codes = alphabet.encode(some)
        known = set(alphabet.letters)
        expected = ["".join(c if c in known else MARK for c in unicodedata.normalize("NFC", text)) for text in some]
        assert alphabet.decode(codes) == expected
        assert torch.equal(alphabet.check_codes(codes), codes)
        assert torch.equal(alphabet.encode(alphabet.decode(codes)), codes) or any(
            unicodedata.normalize("NFC", text) != text for text in expected
        )
        hot = OneHot(num_states=alphabet.num_states)
        assert torch.equal(hot.inverse(hot.forward(codes)), codes)
    assert Alphabet.from_dict(json.loads(json.dumps(alphabet.to_dict()))) == alphabet


def test_codes_are_the_end_the_unseen_letter_and_letters_by_code_point() -> None:
    alphabet = Alphabet.fit(["ba", "ca"])
    assert alphabet.letters == "abc"
    assert (alphabet.num_states, alphabet.length) == (5, 4)
    assert alphabet.encode(["bax"]).tolist() == [[3, 2, UNSEEN, END]]
    assert alphabet.decode(torch.tensor([[3.0, 0, 2, 2]])) == ["b"]
    with pytest.raises(UserError, match="has 5 letters") as error:
        alphabet.encode(["a", "aaaaa"], where="x.txt", lines=[1, 9])
    assert error.value.argument == "x.txt, line 9"
    assert "data.length=5" in (error.value.hint or "")


@pytest.mark.parametrize(
    "stored",
    [
        None,
        {"letters": "ab"},
        {"letters": "ab", "length": 0},
        {"letters": "ab", "length": 10**9},
        {"letters": "aa", "length": 3},
        {"letters": "ba", "length": 3},
        {"letters": "", "length": 3},
        {"letters": ["a", "bc"], "length": 3},
        {"letters": "a\ud800", "length": 3},
        {"letters": "a" + MARK, "length": 3},
        {"letters": "ab", "length": True},
        {"letters": "ab", "length": 3, "more": 1},
    ],
)
def test_an_alphabet_of_a_stranger_is_checked(stored: object) -> None:
    with pytest.raises(UserError):
        Alphabet.from_dict(stored)


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(2, 3), torch.full((1, 4), 7.0), torch.tensor([[2.0, 0, 2, 0]]), torch.full((1, 4), 0.5)],
    ids=["shape", "range", "letter after the end", "no whole number"],
)
def test_codes_that_no_text_has_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(UserError):
        Alphabet("abc", 4).check_codes(bad)


def test_one_hot_has_one_number_a_state_and_refuses_to_guess() -> None:
    x = torch.tensor([[2.0, 1, 0]])
    fitted = OneHot().fit(x)
    assert fitted.num_states == 3
    assert fitted.forward(x).tolist() == [[[0, 0, 1], [0, 1, 0], [1, 0, 0]]]
    assert fitted.log_abs_det(x).tolist() == [0]
    again = config.build(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    with pytest.raises(UserError, match="must be fitted"):
        OneHot().forward(x)


def test_a_file_is_one_text_a_line_however_its_lines_end(tmp_path: Path) -> None:
    found = read_texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello\r\n\r\n  two words \nab\rcafe\xcc\x81"))
    assert found.texts == ["hello", "two words", "ab", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
    assert found.numbers == [1, 3, 4, 5]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no text"),
        (b"\n \n\r\n", "no text"),
        (b"a\nb\n\xff\xfe\n", "line 3"),
        (b"a\nb\x00\n", "line 2"),
        (b"\x1f\x8b\x08\x00\xff", "compressed"),
    ],
)
def test_what_is_no_text_is_refused_by_its_line(tmp_path: Path, content: bytes, part: str) -> None:
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=part) as error:
        read_texts(path)
    assert error.value.argument == str(path)


def test_the_split_holds_out_a_tenth_and_the_letters_are_those_of_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join([*WORDS, *WORDS[:6]]))
    data = load(str(path), seed=3)
    assert (data.kind, len(data.train), len(data.held_out)) == ("text", 59, 7)
    assert data.alphabet is not None
    assert data.shape == (data.alphabet.length,) == (6,)
    assert data.energy_shape == (6, data.alphabet.num_states)
    assert sorted(data.alphabet.decode(torch.cat([data.train, data.held_out]))) == sorted([*WORDS, *WORDS[:6]])
    assert "6 repeat an earlier one" in data.source
    again, other = load(str(path), seed=3), load(str(path), seed=4)
    assert again.fingerprint == data.fingerprint != other.fingerprint
    few = load(str(path), DataOptions(limit=5, held_out=0.5), seed=3)
    assert (len(few.train), len(few.held_out)) == (5, 33)
    assert few.alphabet is not None
    assert set(few.alphabet.letters) == {c for text in few.alphabet.decode(few.train) for c in text}


def test_another_alphabet_of_the_same_form_is_other_data() -> None:
    a, b = (given_dataset([word.translate(table) for word in WORDS]) for table in ({}, {ord("t"): "u"}))
    assert torch.equal(a.train, b.train)
    assert a.fingerprint != b.fingerprint


def test_a_length_may_be_given_and_long_lines_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(["", *WORDS, "x" * 90]))
    with pytest.raises(UserError) as error:
        load(str(path))
    assert error.value.argument == f"{path}, line 62"
    assert load(str(path), DataOptions(length=90)).shape == (90,)
    with pytest.raises(UserError) as error:
        load(str(path), DataOptions(length=20))
    assert error.value.argument == f"{path}, line 62"
    with pytest.raises(UserError):
        load(str(path), DataOptions(length=0))


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        (DataOptions(header=True), "header"),
        (DataOptions(header=False), "header"),
        (DataOptions(drop=["a"]), "drop"),
        (DataOptions(targets=["a"]), "data.targets"),
        (DataOptions(hub=True), "hub"),
        (DataOptions(path="x"), "data"),
        (DataOptions(size=8), "size"),
        (DataOptions(labels="folder"), "labels"),
        (DataOptions(skip_bad=True), "skip_bad"),
        (DataOptions(column="image"), "data.column"),
    ],
)
def test_options_of_other_data_are_refused_for_texts(tmp_path: Path, options: DataOptions, argument: str) -> None:
    path = write(tmp_path / "a.txt", "\n".join(WORDS))
    with pytest.raises(UserError) as error:
        load(str(path), options)
    assert error.value.argument == argument


def test_the_length_is_an_option_of_texts_alone() -> None:
    with pytest.raises(UserError) as error:
        load("two-moons", DataOptions(length=4))
    assert error.value.argument == "data.length"


def test_one_word_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 1 text"):
        load(str(write(tmp_path / "a.txt", "word")))


def test_texts_in_memory_are_a_list_of_str_or_an_array() -> None:
    data = given_dataset(WORDS)
    assert data.kind == "text"
    assert given_dataset(np.array(WORDS)).fingerprint == data.fingerprint
    assert given_dataset(np.array(WORDS, dtype=object)).fingerprint == data.fingerprint
    apart = given_dataset(WORDS, held_out=["tab", "zzz"])
    assert apart.alphabet is not None
    assert apart.alphabet.decode(apart.held_out) == ["tab", MARK * 3]
    for bad, argument in (
        ([*WORDS, 3], "data[60]"),
        ([*WORDS, ""], "data[60]"),
        ([*WORDS, "a\nb"], "data[60]"),
        ([*WORDS, "\ud800"], "data[60]"),
    ):
        with pytest.raises(UserError) as error:
            given_dataset(bad)
        assert error.value.argument == argument
    with pytest.raises(UserError):
        given_dataset(WORDS, labels=[0] * 60)


def test_texts_in_memory_may_be_in_any_container_with_an_order() -> None:
    want = given_dataset(WORDS).fingerprint
    for data in (tuple(WORDS), pd.Series(WORDS), pd.Series(WORDS, dtype="string"), pl.Series(WORDS)):
        assert given_dataset(data).fingerprint == want


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ([3, *WORDS], "data[0]: must be a str; it is an int"),
        ([None, *WORDS], "data[0]: must be a str; it is None"),
        ([word.encode() for word in WORDS], "data[0]: must be a str; it is a bytes"),
        (np.array([3, *WORDS], dtype=object), "data[0]: must be a str; it is an int"),
        (pl.Series([None, *WORDS]), "data[0]: must be a str; it is None"),
        (set(WORDS), "it is a set; give list(data)"),
        (dict.fromkeys(WORDS), "it is a dict"),
        ((word for word in WORDS), "it is a generator; give list(data)"),
        ([WORDS], "item 0 is a list with texts"),
        (np.array([WORDS]), "it is an array (1, 60) with texts"),
        ([], "not empty"),
        (pd.Series([], dtype=str), "not empty"),
    ],
    ids=lambda value: value.split(";")[0] if isinstance(value, str) else type(value).__name__,
)
def test_what_holds_texts_in_another_way_is_refused_in_a_clear_line(bad: object, line: str) -> None:
    with pytest.raises(UserError) as error:
        given_dataset(bad)
    assert line in str(error.value)
    assert "numpy" not in str(error.value)


def test_hints_about_long_lines_can_be_followed(tmp_path: Path) -> None:
    for long, length, hint in (
        (["x" * 70_000], None, "remove it"),
        (["x" * 90], None, "remove it, or give data.length=90"),
        (["x" * 15, "x" * 13], 3, "give data.length=15"),
    ):
        path = write(tmp_path / "a.txt", "\n".join([*WORDS, *long]))
        with pytest.raises(UserError) as error:
            load(str(path), DataOptions(length=length))
        assert error.value.hint == hint


def test_held_out_texts_far_longer_than_those_to_train_on_are_refused() -> None:
    with pytest.raises(UserError, match="far more than the others: 99 % have 4 or fewer") as error:
        given_dataset(WORDS, held_out=["x" * 500] * 10)
    assert error.value.argument == "held_out[0]"
    assert given_dataset(WORDS, held_out=["x" * 20]).shape == (22,)


def test_where_numbers_are_wanted_a_text_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(WORDS))
    with pytest.raises(UserError, match="cannot read") as error:
        read_array(path)
    assert ".txt" not in (error.value.hint or "")
