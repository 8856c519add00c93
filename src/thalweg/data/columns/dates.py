"""Texts that are dates or times, in any usual format.

`dateutil` parses most formats, but also texts that are no dates ("12A", "T1", "May"). So it is used only where a text
looks like a date, and must find a year and a month, a month by its name and a day, or an hour and a minute. The
patterns are for formats that it does not know: weeks, quarters, other languages, logs, durations.
"""

import re
import unicodedata
from collections import Counter
from datetime import datetime

ASKED = 400  # different texts of a column that are checked
_TIME = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?(\s*[AaPp]\.?[Mm]\.?)?"
_ZONE = r"(\s*(Z|UTC|GMT|[+-]\d{2}:?\d{2}|[A-Z]{3,4}))?"
_DAY = r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})"
_YEAR = r"(19|20)\d\d"
_WORD = r"[^\W\d_]{3,}\.?"
_KNOWN = re.compile(
    "|".join(
        (
            rf"{_DAY}([T _]{_TIME})?{_ZONE}",  # 2024-01-31, 31.1.2024 12:05, 2024-01-31T12:05:00.5+01:00
            rf"{_DAY}[T _]\d{{1,2}}[.-]\d{{2}}([.-]\d{{2}})?",  # 2024-01-31_12-05-00
            rf"\d{{8}}T\d{{4}}(\d{{2}}(\.\d+)?)?{_ZONE}",  # 20240131T120500Z
            rf"{_TIME}{_ZONE}|\d{{1,2}}:\d{{2}}\.\d+|\d{{1,2}}h\d{{2}}",  # 12:05, 12:05:00 PM, 1:05.3, 12h05
            r"\d{1,2}\s*[AaPp]\.?[Mm]\.?",  # 3 pm
            rf"\d{{1,2}}/[^\W\d_]{{3}}/{_YEAR}:{_TIME}{_ZONE}",  # 31/Jan/2024:12:05:00 +0000
            rf"{_YEAR}-?W[0-5]\d(-?[1-7])?",  # 2024-W05-3
            rf"{_YEAR}-[0-3]\d\d",  # 2024-031, the day of the year
            rf"{_YEAR}[-/]\d{{1,2}}|\d{{1,2}}[-/]{_YEAR}",  # 2024-01, 01/2024
            rf"{_YEAR}[-/ ]?Q[1-4]|Q[1-4][-/ ]?{_YEAR}",  # 2024-Q1
            rf"{_YEAR}年\d{{1,2}}月(\d{{1,2}}日)?( *{_TIME})?",
            rf"(\w+,? )?\d{{1,2}}(\.|º|er)?[ ./-]+(de |of )?{_WORD}[ .,/-]+(de )?{_YEAR}( *,? *{_TIME})?{_ZONE}",
            rf"{_WORD} \d{{1,2}},? {_YEAR}( *,? *{_TIME})?{_ZONE}",  # the month by its name, in any language
            r"(0[1-9]|1[0-2])/([0-2]\d|3[01])|([0-2]\d|3[01])/(0[1-9]|1[0-2])|[0-3]\d\.[01]\d\.",  # 01/31, 31.01.
            r"-?\d+ days?,? ?(\+?\d{1,2}:\d{2}:\d{2}([.,]\d+)?)?",  # 1 day, 02:00:00, as Python writes a duration
            r"P(?=.)(\d+[YMWD])*(T(\d+([.,]\d+)?[HMS])+)?",  # PT5M
        )
    )
)
_SHORT_YEAR = re.compile(r"\d{1,2}[-/.]\d{1,2}[-/.]\d{2}|\d{2}[-/.]\d{1,2}[-/.]\d{1,2}")
_LETTERS = re.compile(r"[^\W\d_]{3,}")
# The months' first letters in English, German, French, Spanish, Italian, Portuguese and Dutch, without accents.
_MONTH = re.compile(
    "jan|ene|gen|feb|fev|mar|mae|maa|mrt|apr|abr|avr|may|mai|maj|mag|mei|jun|jui|giu|jul|lug|aug|aou|ago|sep|set|oct|okt|"
    "ott|out|nov|dec|dez|dic"
)
_ENGLISH = re.compile("jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec")
_NAMED = re.compile(rf"\d{{1,2}}[ ./-]*({_WORD})[ .,/-]*('?\d{{2}}|\d{{4}})|{_WORD}[ ./-]+{_YEAR}")  # 01-Mär-24


def is_moment(text: str) -> bool:
    """Whether a text is a date, a month of a year, a time of day or a duration."""
    text = text.strip()
    if len(text) > 40 or not any(c.isdigit() for c in text):
        return False
    if _KNOWN.fullmatch(text):
        return True
    words = [_plain(word) for word in _LETTERS.findall(text)]
    if _NAMED.fullmatch(text) and _MONTH.match(words[0]):
        return True
    if any(map(_ENGLISH.match, words)):
        return "month" in _parsed_parts(text)
    return bool(_SHORT_YEAR.fullmatch(text)) and _parsed_parts(text) >= {"year", "month", "day"}


def moments(counts: Counter[str]) -> float:
    """The share of rows whose text is a date or time, from the texts and their numbers of rows.

    Of more than 400 different texts, 400 are checked, evenly spaced in their order.
    """
    texts = sorted(counts)
    asked = texts if len(texts) <= ASKED else [texts[i * len(texts) // ASKED] for i in range(ASKED)]
    total = sum(counts[text] for text in asked)
    return sum(counts[text] for text in asked if is_moment(text)) / total if total else 0.0


def _plain(word: str) -> str:
    """Without accents, in lower case."""
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))


def _parsed_parts(text: str) -> set[str]:
    """The parts among year, month, day, hour and minute that dateutil finds in a text; empty where it finds none."""
    from dateutil import parser

    found = []
    for default in (datetime(2000, 1, 1, 1, 1), datetime(2004, 3, 2, 2, 2)):  # what differs was not in the text
        try:
            found.append(parser.parse(text, default=default, ignoretz=True))
        except (ValueError, OverflowError):
            return set()
    names = ("year", "month", "day", "hour", "minute")
    return {name for name in names if getattr(found[0], name) == getattr(found[1], name)}
