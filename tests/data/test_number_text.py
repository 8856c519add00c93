"""Which texts are numbers in which writing, which are numbers but for a mark, and which are codes."""

import pytest

from thalweg.core.errors import DamagedFile, UserError
from thalweg.data.columns.number_formats import Writing, is_number, near, readings
from thalweg.data.columns.reading_options import Reading, option

POINT, COMMA = Writing(), Writing(",")


@pytest.mark.parametrize(
    ("writing", "text", "number"),
    [
        (POINT, "19.4", 19.4),
        (POINT, " -1e-3 ", -1e-3),
        (POINT, "\u00a05", 5.0),
        (COMMA, "19,4", 19.4),
        (COMMA, "-,5", -0.5),
        (COMMA, "7,", 7.0),
        (COMMA, "1,5e3", 1500.0),
        (COMMA, "12", 12.0),
        (COMMA, "-inf", float("-inf")),
        (Writing(".", ","), "1,234.50", 1234.5),
        (Writing(".", ","), "999", 999.0),
        (Writing(".", ","), "1234.5", 1234.5),
        (Writing(".", ","), "+12,345,678", 12_345_678.0),
        (Writing(".", ","), "12,34,567.5", 1_234_567.5),
        (Writing(",", "."), "1.234,5", 1234.5),
        (Writing(",", "."), "1.234", 1234.0),
        (Writing(",", " "), "1\u202f234,5", 1234.5),
        (Writing(",", "\u00a0"), "1 234,5", 1234.5),
        (Writing(".", "'"), "1\u2019234.5", 1234.5),
        (Writing(".", "_"), "1_000", 1000.0),
    ],
)
def test_numbers_of_a_writing(writing, text, number):
    assert writing.number(text) == number


@pytest.mark.parametrize(
    ("writing", "text"),
    [
        (POINT, "19,4"),
        (POINT, "1,234.50"),
        (POINT, "1_000"),
        (COMMA, "19.4"),
        (COMMA, "1.234"),
        (COMMA, "1,2,3"),
        (Writing(".", ","), "19,4"),  # pandas reads 194
        (Writing(".", ","), "1,23"),
        (Writing(".", ","), "12,3456"),
        (Writing(".", ","), "1234,567"),
        (Writing(".", ","), ",123"),
        (Writing(".", ","), "0,123"),
        (Writing(".", ","), "1.234,567"),
        (Writing(",", "."), "95.0"),  # pandas reads 950
        (Writing(",", "."), "1.2.3"),
        (Writing(".", " "), "030 123 456"),
        (COMMA, "5 kg"),
        (COMMA, ""),
        (COMMA, "infinite"),
    ],
)
def test_what_is_no_number_of_a_writing(writing, text):
    """A wrong group of digits is never joined."""
    assert writing.number(text) is None


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((";",), "decimal"),
        (("",), "decimal"),
        ((",", ","), "thousands"),
        ((".", "x"), "thousands"),
        ((".", ""), "thousands"),
    ],
)
def test_wrong_writings(arguments, argument):
    with pytest.raises(UserError) as caught:
        Writing(*arguments)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["19,4", "7"], [COMMA]),
        (["1,234"], [Writing(".", ","), COMMA]),  # 1234 or 1.234
        (["1,234", "19,4"], [COMMA]),
        (["1,234", "7.5"], [Writing(".", ",")]),
        (["1.234.567"], [Writing(",", ".")]),
        (["1.234", "19,4"], [Writing(",", ".")]),
        (["1 234,5", "7"], [Writing(",", " ")]),
        (["19,4", "7.5"], []),
        (["A12", "7,5"], []),
        (["7.5", "8"], [POINT]),
    ],
)
def test_the_writings_that_read_all_texts(texts, found):
    assert readings(texts) == found


@pytest.mark.parametrize(
    ("text", "beside", "unit"),
    [
        ("19,4", "", ""),
        ("1'234.5", "", ""),
        ("-5 kg", "kg", " kg"),
        ("21.5°C", "°C", "°C"),
        ("21.5℃", "°C", "°C"),
        ("52.5°", "°", ""),
        ("12%", "%", ""),
        ("12,5 %", "%", ""),
        ("$4,000,000.00", "$", ""),
        ("-€5", "€", ""),
        ("EUR 5", "EUR", ""),
        ("5 USD", "USD", ""),
        ("\u22125.1", "\u2212", ""),
        ("5.1-", "-", ""),
        ("(1,234.50)", "()", ""),
        ("12.5*", "*", ""),
        ("3.2M", "M", "M"),
        ("60 km/h", "km/h", " km/h"),
        ("5 m²", "m2", " m2"),
        ("7 l/100km", "l/100km", " l/100km"),
        ("12A", "A", "A"),  # a code, unless nearly all rows have the same letter: `units`
    ],
)
def test_numbers_but_for_a_mark(text, beside, unit):
    found = near(text)
    assert found is not None
    assert (found.beside, found.unit) == (beside, unit)


@pytest.mark.parametrize("text", ["- 5", "'19.4'", "\uff19\uff15", "\u0663\u0664"])
def test_other_blanks_and_digits_are_marks(text):
    found = near(text)
    assert found is not None
    assert found.beside


CODES = """
A12 x 3+ 20-30 <0.5 555-1234 1.2.3 10.0.0.1 0_00 1_10 4x4 1st 2nd 12:05 2024-01-31 31.12.2024 v1.2 1/2 (5 5) --5 C-3PO
R2D2 030-123 ½ 1,2,3
"""


@pytest.mark.parametrize("text", CODES.split())
def test_codes_are_no_numbers(text):
    assert near(text) is None


@pytest.mark.parametrize(("text", "yes"), [("1", True), ("1_0", False), ("\u0663", False), ("nan", True), ("", False)])
def test_plain_numbers(text, yes):
    assert is_number(text) == yes


class TestReading:
    def test_words_of_a_csv_and_of_other_tables(self):
        assert {"", "NA", "<NA>"} <= Reading().words(True)
        assert Reading().words(False) == frozenset()
        for csv in (True, False):
            assert Reading.of(na_values=["-", "-"]).words(csv) == {"", "-"}
            assert Reading.of(na_values="?").words(csv) == {"", "?"}
            assert Reading.of(na_values=[]).words(csv) == {""}

    @pytest.mark.parametrize(
        ("arguments", "argument"),
        [
            ({"decimal": "x"}, "decimal"),
            ({"decimal": None}, "decimal"),
            ({"thousands": "."}, "thousands"),
            ({"na_values": -999}, "na_values"),
            ({"na_values": [None]}, "na_values"),
            ({"na_values": {"a": ["-"]}}, "na_values"),
            ({"dtype": "category"}, "dtype"),
            ({"dtype": {"a": "float64"}}, "dtype['a']"),
        ],
    )
    def test_wrong_arguments(self, arguments, argument):
        with pytest.raises(UserError) as caught:
            Reading.of(**arguments)
        assert caught.value.argument == argument

    def test_it_is_stored(self):
        for reading in (Reading(), Reading.of(",", " ", ["-"], {"a": "category"}), Reading.of(na_values=())):
            assert Reading.from_dict(reading.to_dict()) == reading
        for wrong in ({"decimal": 3}, {"x": 1}, [], None):
            with pytest.raises(DamagedFile):
                Reading.from_dict(wrong)
        assert Reading().given is None
        assert Reading.of(na_values=[]).given == "na_values"

    def test_how_an_option_is_said(self):
        assert option("t.csv", "thousands", " ") == "--thousands ' '"
        assert option("t.csv", "na_values", "?", "no data") == "--na-values '?' --na-values 'no data'"
        assert option("t.csv", "dtype", {"a b": "number"}) == "--dtype 'a b=number'"
        assert option("X", "na_values") == "na_values=[]"
        assert option("X", "dtype", {"a": "number"}) == "dtype={'a': 'number'}"
