"""Texts that are numbers, in which writing, and texts that are numbers but for a separator, a sign or a unit.

A text is a number if it is a sign, ASCII digits, a decimal point and an exponent, or inf, infinity or nan. Another
writing, such as "19,4" or "1,234.50", is read only where a `Writing` says so, since "1,234" may be 1.234 or 1234.
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from thalweg.core import check
from thalweg.core.errors import UserError

DECIMALS = (".", ",")
SAME = {" ": " \u00a0\u2009\u202f", "'": "'\u2019", ",": ",", ".": ".", "_": "_"}  # separators of thousands, as written
WORDS = ("inf", "infinity", "nan")
CURRENCIES = (
    "USD|EUR|GBP|JPY|CHF|CNY|INR|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|RUB|KRW|ZAR|MXN|TRY|US\\$|R\\$|Rs\\.?|Fr\\.?"
)
_MONEY = rf"(?:[$¢£¤¥฿\u20a0-\u20c0]|{CURRENCIES})"
_NEAR = re.compile(
    rf"(?P<open>\()?(?P<sign>[+\-\u2212\u2013]?)\s*(?P<before>{_MONEY}?)\s*(?P<sign2>[+\-\u2212\u2013]?)\s*"
    r"(?P<core>(?:\d|[.,]\d)(?:[\d.,'\u2019_ ]*\d)?[.,]?(?:[eE][+-]?\d+)?)"
    rf"(?P<close>\))?\s*(?P<after>-|{_MONEY}|[%‰°*†‡]+|(?P<unit>[^\W\d_°]*°?[^\W\d_](?:[^\W\d_]|[/·*^. \-](?=[^\W\d_])"
    r"|/100 ?(?=[^\W\d_])|(?<=[^\W\d_])[23](?!\d))*)\.?)?"
)
OTHER_MARKS = "blanks, quotation marks or digits of another script"
_ORDINAL = {"st", "nd", "rd", "th"}  # of 1st, 2nd: a rank, which is a category


class Near(NamedTuple):
    """A text that is a number but for something.

    Args:
        core: Its digits and separators.
        beside: What stands beside them: a unit, a currency, a percent sign, brackets; empty if nothing does.
        unit: The letters after them, with the blank before; empty if there are none.
    """

    core: str
    beside: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Writing:
    """How numbers are written: pandas' `decimal` and `thousands`.

    Thousands are taken as separators only between groups of three digits (1,234,567), or of two before the last three
    (12,34,567). A number that breaks this, or has a point where `decimal` is a comma, is none.

    Args:
        decimal: "." or ",".
        thousands: None, or one of , . ' _ and a blank, which stands for no-break and thin blanks too.
    """

    decimal: str = "."
    thousands: str | None = None

    def __post_init__(self):
        check.one_of(DECIMALS, decimal=self.decimal)
        if self.thousands is None:
            return
        known = next((s for s, same in SAME.items() if self.thousands and self.thousands in same), self.thousands)
        object.__setattr__(self, "thousands", known)
        check.one_of(tuple(SAME), thousands=known)
        if known == self.decimal:
            raise UserError("must differ from decimal", argument="thousands", value=known)

    @property
    def is_plain(self) -> bool:
        """Whether these are plain numbers, with a point and no separator of thousands."""
        return self.decimal == "." and self.thousands is None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        point, whole = re.escape(self.decimal), r"\d+"
        if self.thousands is not None:
            mark = f"[{re.escape(SAME[self.thousands])}]"
            whole = rf"(?:[1-9]\d{{0,2}}(?:{mark}\d{{3}})+|[1-9]\d?(?:{mark}\d{{2}})+{mark}\d{{3}}|\d+)"
        return re.compile(rf"[+-]?(?:{whole}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?", re.ASCII)

    def number(self, text: str) -> float | None:
        """The number that a text is, None if it is none; blanks around it do not count."""
        text = text.strip()
        if self.is_plain:
            return float(text) if is_number(text) else None
        if not self._pattern.fullmatch(text):
            return float(text) if text.lstrip("+-").lower() in WORDS and is_number(text) else None
        for mark in SAME[self.thousands] if self.thousands else "":
            text = text.replace(mark, "")
        return float(text.replace(self.decimal, "."))


PLAIN = Writing()


def is_number(text: str) -> bool:
    """Whether a text is a number: sign, ASCII digits, point and exponent, or inf, infinity, nan; blanks around it."""
    if not text.isascii() or "_" in text:  # Python's own writing, 1_000, and digits of other scripts
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def readings(texts: Collection[str]) -> list[Writing]:
    """The writings in which all texts are numbers, without separators that none of them has. Two or more: ambiguous."""
    used = [s for s, same in SAME.items() if any(mark in text for text in texts for mark in same)]
    pairs = [(d, t) for d in DECIMALS for t in (None, *used) if d != t and (d == "." or "," in used or t == ".")]
    return [w for w in (Writing(*pair) for pair in pairs) if all(w.number(text) is not None for text in texts)]


def near(text: str) -> Near | None:
    """What a text lacks to be a number in some writing; None for a text that is none whatever is taken away.

    Digits of other scripts, no-break blanks, minus signs other than "-", signs after the number, brackets for
    negative numbers, quotation marks, currencies, percent signs and units may be taken away; letters before the digits
    (A12) make a code, and so do 1st, 3+ and 20-30.
    """
    if not any(c.isdecimal() for c in text):
        return None
    if readings([text.strip()]):
        return Near(text.strip())
    same = unicodedata.normalize("NFKC", text).strip()
    plain = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in same)
    if len(plain) > 2 and plain[0] == plain[-1] and plain[0] in "'\"":
        plain = plain[1:-1].strip()
    found = _NEAR.fullmatch(plain)
    if found is None or bool(found["open"]) != bool(found["close"]) or (found["sign"] and found["sign2"]):
        return None
    unit = (found["unit"] or "").rstrip(".")
    if unit.casefold() in _ORDINAL or not readings([found["core"]]):
        return None
    beside = found["after"] or found["before"] or ("()" if found["open"] else "")
    beside = beside or next((s for s in (found["sign"], found["sign2"]) if s not in ("", "+", "-")), OTHER_MARKS)
    return Near(found["core"], beside, " " + unit if unit and plain[found.start("after") - 1].isspace() else unit)
