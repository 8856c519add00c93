"""Refusal of columns of texts that would be taken for categories by mistake.

A column is in doubt where most of its texts are numbers but for a separator, a sign, a unit or a word for a missing
value, or are dates. As categories they would be learned without a warning, and later any number would be accepted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from thalweg.core.errors import ROW, UserError
from thalweg.data.columns.dates import is_moment, moments
from thalweg.data.columns.number_formats import OTHER_MARKS, PLAIN, Near, Writing, near, readings
from thalweg.data.columns.reading_options import IN_MEMORY, option
from thalweg.data.columns.units import without_codes

MOSTLY = 0.9  # share of numbers in a CSV's column from which on a text among them is an error and no category
MANY = 100  # different numbers that are no codes: more than categories are told apart
# What people write for a missing value; only the words of a `Reading` are read so.
_GAP_WORDS = """
- -- --- – — ? ?? . .. … * / na n/a n.a. n.a #n/a #na nan -nan 1.#ind #div/0! #value! #ref! #num! null nil none missing
unknown unk undefined undef void empty blank nodata error err nd n.d. k.a. invalid
"""
GAPS = frozenset(
    {*_GAP_WORDS.split(), "not available", "not applicable", "no data", "not measured", "no value", "keine angabe"}
)


class Doubt(NamedTuple):
    """Why a column is neither of numbers nor of categories.

    Args:
        kind: "writing", "mark" (a unit, a sign), "gap" (a word that may mean a missing value), "word", or "text" where
            all are plain numbers, stored as texts.
        row: The place of the first such text among the values.
        like: Rows with such a text.
        numbers: Rows with a plain number.
        near: What the text lacks to be a number; None for a word.
        readings: The writings in which all numbers of the column are numbers.
        writing: The one that the table was read in.
    """

    kind: str
    row: int
    like: int
    numbers: int
    near: Near | None
    readings: list[Writing]
    writing: Writing = PLAIN


def doubt(values: Sequence[str | None], writing: Writing, *, declared: bool) -> Doubt | None:
    """The doubt about a column's texts, None where they are categories. Missing values are None.

    `declared`: the texts were stored as texts on purpose (Parquet, a frame), so whole numbers among them may be codes.
    """
    counts = Counter(value for value in values if value is not None)
    found = without_codes(counts, {text: near(text) for text in counts if writing.number(text) is None})
    kinds = {text: _kind(text, n) for text, n in found.items()}
    numeric = {text: count for text, count in counts.items() if kinds.get(text) not in ("gap", "word")}
    numbers, rest = sum(numeric.values()), sum(c for text, c in counts.items() if kinds.get(text) != "gap")
    many = not declared and numbers >= MOSTLY * rest
    if not numbers or not (many or (numbers > 0.5 * rest and _measured(numeric, kinds, writing, declared))):
        return None
    rows = Counter[str]()
    for text, kind in kinds.items():
        rows[kind] += counts[text]
    first, like = rows.most_common(1)[0] if rows else ("text", counts.total())
    row = next(i for i, value in enumerate(values) if value is not None and kinds.get(value, "text") == first)
    written = [text for text in counts if kinds.get(text, "writing") == "writing"]
    plain = sum(count for text, count in counts.items() if text not in found)
    return Doubt(first, row, like, plain, found.get(values[row] or ""), readings(written), writing)


def refuse_doubt(
    found: Doubt, values: Sequence[str | None], name: str, where: str, rows: Sequence[int], *, offered: bool
) -> None:
    """UserError that names the column, a text, its row and the remedy. `offered`: options of `Reading` are."""
    text = values[found.row] or ""
    what, hint = _described(found, text, where, offered)
    more = f" and {found.like - 1} more" if found.like > 1 else ""
    if offered:
        hint += f", or say {option(where, 'dtype', {name: 'category'})} to take its texts for categories"
    at = f"column {name!r} holds {text!r:.60} in {ROW}{more}"
    raise UserError(f"{at}, {what}", argument=where, hint=hint, row=int(rows[found.row]))


def refuse_moments(values: Sequence[str | None], name: str, where: str, *, offered: bool) -> None:
    """UserError where most of the texts are dates or times, whatever their writing."""
    counts = Counter(value for value in values if value is not None and value.strip().casefold() not in GAPS)
    if moments(counts) <= 0.5:
        return
    text = next(value for value in values if value is not None and is_moment(value))
    hint = "drop it, or turn it into numbers, as an age"
    if offered:
        hint += f", or say {option(where, 'dtype', {name: 'category'})} to take its texts for categories"
    raise UserError(f"column {name!r} holds dates or times such as {text!r}", argument=where, hint=hint)


def _kind(text: str, found: Near | None) -> str:
    if text.strip().casefold() in GAPS:
        return "gap"
    return "word" if found is None else "mark" if found.beside else "writing"


def _measured(numeric: Mapping[str, int], kinds: Mapping[str, str], writing: Writing, declared: bool) -> bool:
    """Whether the numbers are measurements and no codes: most have a fraction, a separator or a unit, or more are
    different than categories are told apart. Whole numbers alone, `declared` to be texts, are codes.
    """
    measured = 0
    for text, count in numeric.items():
        number = writing.number(text)
        measured += count if number is None or number % 1 else 0
    return measured > 0.5 * sum(numeric.values()) or (len(numeric) > MANY and not (declared and not kinds))


def _described(found: Doubt, text: str, where: str, offered: bool) -> tuple[str, str]:
    """The fault of the text, and the remedy."""
    if found.kind == "text":
        return "numbers that are stored as texts", "turn them into numbers"
    if found.kind == "writing":
        hint = _by_readings(found, text, where) if offered else "write a decimal point and no other separators"
        return "a number in another writing", hint
    if found.kind == "mark" and found.near is not None:
        beside = found.near.beside if found.near.beside == OTHER_MARKS else repr(found.near.beside)
        return f"a number but for {beside}", "write the number alone"
    numbers = f"where {found.numbers} rows hold numbers"
    if found.kind == "gap":
        remedy = f"say {option(where, 'na_values', text)}" if offered else "leave the value empty"
        return numbers, f"if it means that the value is missing, {remedy}"
    if offered and found.like > 1:
        return (
            numbers,
            f"correct it or, if it means that the value is missing, say {option(where, 'na_values', text)}",
        )
    gap = f" and fit with {option(where, 'missing', 'marginalise')}" if offered else ""
    return numbers, f"correct the value, or leave it empty{gap}"


def _by_readings(found: Doubt, text: str, where: str) -> str:
    """The options that read the text, each with the number that it gives."""
    ways = [f"{_change(found.writing, new, where)} to read {new.number(text):.12g}" for new in found.readings]
    if not ways:
        return "the column mixes two writings, which no option reads, so write its numbers alike"
    alike = "" if found.writing.is_plain else " (for all columns: where others are written otherwise, write them alike)"
    return f"{', or '.join(ways)}{alike}"


def _change(old: Writing, new: Writing, where: str) -> str:
    """What to say, and what to leave out, so that a table is read in another writing."""
    plain = [option(where, "decimal", new.decimal)] if new.decimal != "." or old.decimal != "." else []
    said = plain + ([option(where, "thousands", new.thousands)] if new.thousands else [])
    out = [f"leave out {option(where, 'thousands', old.thousands)}"] if old.thousands and not new.thousands else []
    words = (" " if where != IN_MEMORY else ", ").join(said)
    return " and ".join([*([f"say {words}"] if words else []), *out])
