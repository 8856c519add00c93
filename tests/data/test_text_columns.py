"""A column of texts is numbers, categories or refused: each rule from both sides, in a CSV and in a frame."""

import numpy as np
import pandas as pd
import pytest

from thalweg.core.errors import UserError
from thalweg.data.columns.encoding import Columns
from thalweg.data.columns.reading_options import Reading

ROWS = 120
MADE = np.random.default_rng(0).normal(21, 2, ROWS)
FLOATS = [f"{value:.2f}" for value in MADE]


def fit(values, *, parse=True, where="t.csv", **options):
    """What the column holds: "number", or the categories."""
    frame = pd.DataFrame({"v": pd.Series(values, dtype=object)})
    column = Columns.fit(frame, where=where, parse=parse, reading=Reading.of(**options)).columns[0]
    return "number" if column.categories is None else sorted(column.categories)


def mixed(values, text, share):
    """The values with this text in a share of them, evenly."""
    return [text if int((i + 1) * share) > int(i * share) else value for i, value in enumerate(values)]


def every(*texts):
    return [texts[i % len(texts)] for i in range(ROWS)]


WRITTEN = {
    "a decimal comma": [t.replace(".", ",") for t in FLOATS],
    "a decimal comma in some rows": mixed(FLOATS, "19,4", 0.4),
    "thousands in some rows": [f"{1000 * v / 21:,.2f}" for v in MADE],
    "thousands, all whole": [f"{10_000 + i:,}" for i in range(ROWS)],
    "points for thousands": [f"{10_000 + i:,}".replace(",", ".") + ",5" for i in range(ROWS)],
    "blanks for thousands": [f"{10_000 + i:,}".replace(",", " ") for i in range(ROWS)],
    "no-break blanks": [f"{10_000 + i:,}.5".replace(",", "\u00a0") for i in range(ROWS)],
    "apostrophes": [f"{10_000 + i:,}.5".replace(",", "'") for i in range(ROWS)],
    "lakhs": [f"{i % 9 + 1},23,456" for i in range(ROWS)],
}
MARKED = {
    "a unit": [f"{t} °C" for t in FLOATS],
    "a unit, tight": [f"{i % 7}kg" for i in range(ROWS)],
    "two units": every("300 g", "1.5 kg", "2 kg", "450 g"),
    "powers of ten": every("1.2k", "3.4M", "5.6k", "780k"),
    "singular and plural": every("1 room", "2 rooms", "3 rooms"),
    "a percent sign": [f"{t}%" for t in FLOATS],
    "money": [f"${t}" for t in FLOATS],
    "money in some rows": mixed(FLOATS, "€5", 0.3),
    "money by its code": [f"{t} EUR" for t in FLOATS],
    "another minus": mixed(FLOATS, "\u22125.1", 0.3),
    "minus at the end": mixed(FLOATS, "5.1-", 0.3),
    "brackets": mixed(FLOATS, "(5.1)", 0.3),
    "full-width digits": every("\uff19\uff15", "\uff18"),
}
GAPS = {
    "a dash": mixed(FLOATS, "-", 0.4),
    "a question mark": mixed(FLOATS, "?", 0.2),
    "missing": mixed(FLOATS, "missing", 0.6),
    "n/a": mixed(every("1", "2"), "n/a", 0.3),
    "#DIV/0!": mixed(FLOATS, "#DIV/0!", 0.3),
    "mostly dashes": mixed(FLOATS, "--", 0.9),
}
WORDS = {
    "one slip": [*FLOATS[:-1], "oops"],
    "a word of its own": mixed(FLOATS, "off", 0.4),
    "limits": mixed(FLOATS, "<0.5", 0.3),
    "many whole numbers": mixed([str(1000 + i) for i in range(ROWS)], "off", 0.1),
}
DATES = {
    "months by their names": [f"{i % 28 + 1:02d}-Jan-24" for i in range(ROWS)],
    "years of two digits": [f"{i % 28 + 1}/1/24" for i in range(ROWS)],
    "weeks": [f"2024-W{i % 50 + 1:02d}" for i in range(ROWS)],
    "with gaps": mixed([f"2024-01-{i % 28 + 1:02d}" for i in range(ROWS)], "unknown", 0.4),
    "times": [f"{i % 12 + 1} pm" for i in range(ROWS)],
}
REFUSED = {**WRITTEN, **MARKED, **GAPS, **WORDS, **DATES}
KEPT = {
    "words": every("red", "green", "blue"),
    "letters first": every("A12", "A13", "B7"),
    "letters last": every("12A", "13B", "14C", "15D"),
    "letters last, one of them often": every("12A", "14A", "16A", "13B", "15C"),
    "letters last, with a blank": every("12 A", "13 B", "14 C", "15 D"),
    "streets": every("221 Baker Street", "12 Oak Avenue", "7 Mill Lane"),
    "ranges": every("18-25", "26-40", "41-65", "65+"),
    "counts with a last class": every("0", "1", "2", "3+"),
    "counts with a last class in words": every("0", "1", "2", "3 or more"),
    "screens": every("1920x1080", "1280x720"),
    "hashes": every("3f2a", "1e5f", "77ab", "90cd"),
    "ordinals": every("1st", "2nd", "3rd", "4th"),
    "versions": every("1.2.3", "1.2.4", "1.3.0"),
    "addresses": every("10.0.0.1", "10.0.0.2", "192.168.1.7"),
    "pressures": every("120/80", "130/85"),
    "codes with underscores": every("0_00", "1_10", "2_20"),
    "bus lines": every("1", "2", "3", "N1", "N2"),
    "whole numbers and a word": mixed(every("1", "2", "3"), "other", 0.3),
    "phone numbers": every("555-1234", "555-9876"),
    "months": every("Jan", "Feb", "Mar"),
    "days of the week": every("Mon", "Tue", "Sun"),
    "few numbers among words": mixed(every("red", "green"), "19.4", 0.2),
    "few dates among words": mixed(every("red", "green"), "2024-01-31", 0.3),
    "dashes alone": every("-", "--"),
    "words and dashes": mixed(every("red", "green"), "-", 0.3),
}


IN_MEMORY = ("n/a",)  # refused of a file only: a frame's column of texts means what it says, and its "n/a" is one


def test_whole_numbers_of_a_column_of_texts_in_memory_are_codes():
    assert fit(REFUSED["n/a"], parse=False) == ["1", "2", "n/a"]


@pytest.mark.parametrize(("name", "parse"), [(n, p) for n in REFUSED for p in (True, False) if p or n not in IN_MEMORY])
def test_what_would_be_categories_by_mistake(name, parse):
    """Refused, with the column, a text that stands there, and its row; taken for categories where that is said."""
    values = REFUSED[name]
    with pytest.raises(UserError) as caught:
        fit(values, parse=parse)
    assert caught.value.argument == "t.csv"
    message = str(caught.value)
    assert "column 'v' holds" in message
    assert "--dtype v=category" in message
    assert any(repr(text)[1:-1] in message or text in message for text in set(values))
    assert "\n" not in message
    assert fit(values, parse=parse, dtype={"v": "category"}) != "number"


@pytest.mark.parametrize("parse", [True, False])
@pytest.mark.parametrize("name", KEPT)
def test_categories_stay_categories(name, parse):
    assert fit(KEPT[name], parse=parse) == sorted(set(KEPT[name]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a decimal comma", {"decimal": ","}),
        ("thousands in some rows", {"thousands": ","}),
        ("thousands, all whole", {"thousands": ","}),
        ("points for thousands", {"decimal": ",", "thousands": "."}),
        ("blanks for thousands", {"thousands": " "}),
        ("no-break blanks", {"thousands": " "}),
        ("apostrophes", {"thousands": "'"}),
        ("lakhs", {"thousands": ","}),
        ("a dash", {"na_values": "-"}),
        ("missing", {"na_values": ["missing"]}),
        ("limits", {"na_values": ["<0.5"]}),
    ],
)
@pytest.mark.parametrize("parse", [True, False])
def test_the_remedy_that_is_told_is_one(name, options, parse):
    """The message of each refusal holds the option, and with it the column is one of numbers."""
    values = WRITTEN.get(name) or GAPS.get(name) or WORDS[name]
    if name != "limits":
        with pytest.raises(UserError) as caught:
            fit(values, where="X", parse=parse)
        for option, value in options.items():
            written = [value] if option == "na_values" and isinstance(value, str) else value
            assert f"{option}={written!r}" in str(caught.value)
    numbers = {} if parse or "decimal" in options or "thousands" in options else {"dtype": {"v": "number"}}
    assert fit(values, parse=parse, **options, **numbers) == "number"


def test_a_word_that_comes_often_may_be_a_gap():
    with pytest.raises(UserError, match=r"--na-values 'sensor off'"):
        fit(mixed(FLOATS, "sensor off", 0.3))
    assert fit(mixed(FLOATS, "sensor off", 0.3), na_values="sensor off") == "number"
    with pytest.raises(UserError, match="--missing marginalise"):
        fit([*FLOATS[:-1], "oops"])


def test_a_text_that_may_be_two_numbers_is_told_as_both():
    with pytest.raises(UserError) as caught:
        fit([f"{i % 9 + 1},234" for i in range(ROWS)])
    assert "--thousands , to read 1234" in str(caught.value)
    assert "--decimal , to read 1.234" in str(caught.value)


def test_points_where_the_numbers_have_commas():
    """A column of the other writing, beside one that has it, is not joined to whole numbers."""
    for options in ({"decimal": ","}, {"decimal": ",", "thousands": "."}):
        with pytest.raises(UserError) as caught:
            fit(FLOATS, **options)
        assert f"{FLOATS[0]!r} in row 0" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        (FLOATS, None),  # fractions are hardly codes
        ([str(i % 5) for i in range(ROWS)], ["0", "1", "2", "3", "4"]),
        ([f"0{i % 5}" for i in range(ROWS)], ["00", "01", "02", "03", "04"]),
        ([f"{20_000 + i // 2}" for i in range(ROWS)], "many"),  # post codes
    ],
)
def test_numbers_that_a_frame_stores_as_texts(values, holds):
    """In a CSV they are numbers; a frame that holds them as texts says that they are codes."""
    assert fit(values) == "number"
    if holds is None:
        with pytest.raises(UserError, match="numbers that are stored as texts"):
            fit(values, parse=False)
    else:
        found = fit(values, parse=False)
        assert found == holds or (holds == "many" and len(found) == ROWS // 2)
    assert fit(values, parse=False, dtype={"v": "number"}) == "number"


def test_a_type_of_categories_settles_it():
    values = WRITTEN["a decimal comma"]
    for frame in (pd.DataFrame({"v": pd.Categorical(values)}),):
        assert Columns.fit(frame, reading=Reading()).columns[0].categories is not None
    with pytest.raises(UserError):
        Columns.fit(pd.DataFrame({"v": values}), reading=Reading())


def test_a_reader_without_options_offers_none():
    """As `train` reads tables."""
    for values in (WRITTEN["a decimal comma"], GAPS["a dash"], MARKED["a unit"], DATES["weeks"]):
        with pytest.raises(UserError) as caught:
            Columns.fit(pd.DataFrame({"v": values}), where="t.csv", parse=True)
        assert "--" not in str(caught.value)


class TestDtype:
    def test_numbers_that_are_codes(self):
        values = [str(i % 3) for i in range(ROWS)]
        assert fit(values, dtype={"v": "category"}) == ["0", "1", "2"]
        frame = pd.DataFrame({"v": np.arange(ROWS) % 3})
        columns = Columns.fit(frame, reading=Reading.of(dtype={"v": "category"}))
        assert columns.columns[0].categories == ("0", "1", "2")
        np.testing.assert_array_equal(columns.encode(frame[:3]), np.eye(3))
        np.testing.assert_array_equal(columns.encode(pd.DataFrame({"v": ["2"]}), parse=True), [[0, 0, 1]])
        with pytest.raises(UserError, match="fractions"):
            Columns.fit(frame * 1.5, reading=Reading.of(dtype={"v": "category"}))

    def test_texts_that_are_no_numbers(self):
        with pytest.raises(UserError, match="'oops' in row 2"):
            fit(["1", "2", "oops", "4"], dtype={"v": "number"})

    def test_a_column_that_is_not_there(self):
        with pytest.raises(UserError) as caught:
            fit(FLOATS, dtype={"w": "number"})
        assert caught.value.argument == "dtype"


def test_a_column_is_read_again_as_it_was_fitted():
    """By the stored writing and words; a category of the fit is no word for a missing value."""
    frame = pd.DataFrame({"a": ["1.234,5", "7", "-", "8"], "b": ["NA", "u", "NA", "u"]})
    reading = Reading.of(",", ".", ["-"])
    columns = Columns.fit(frame, parse=True, reading=reading)
    again = Columns.from_list(columns.to_list(), Reading.from_dict(reading.to_dict()), columns.left_out)
    assert again == columns
    np.testing.assert_array_equal(again.encode(frame, parse=True)[:, 0], [1234.5, 7, np.nan, 8])
    np.testing.assert_array_equal(again.encode(frame, parse=True)[:, 1:], [[1, 0], [0, 1], [1, 0], [0, 1]])
    with pytest.raises(UserError, match=r"'1\.5' in row 0"):
        again.encode(frame.assign(a="1.5"), parse=True)
    in_memory = Columns.fit(frame.assign(a=[1.0, 2, 3, 4]))
    csv = frame.assign(a=["1", "NA", "3", "4"])
    np.testing.assert_array_equal(in_memory.encode(csv, parse=True)[:, 0], [1, np.nan, 3, 4])
    np.testing.assert_array_equal(in_memory.encode(csv, parse=True)[:, 1:], [[1, 0], [0, 1], [1, 0], [0, 1]])
