"""Which endings of numbers are units (5 kg, 21 °C, 3.2M), and which make the number a code (12A, 13B)."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from thalweg.data.columns.number_formats import Near

LEAST = 3  # different numbers before an ending that is not known, for it to be a unit
SHARE = 0.9  # of the rows with an ending that is not known, for it to be a unit
_NAMES = """
kg mg µg μg ug lb oz cm mm km nm µm μm um dm ft ml dl cl m2 m3 cm2 cm3 sec ms µs μs ns min hr hz khz mhz ghz mv kv ma kw
mw gw kwh mwh wh pa kpa hpa mpa bar mbar psi kn nm kj mj db dbm ohm lux mol kb mb gb tb kib mib gib ppm ppb rpm mph kmh
pct pcs stk day week month year hour minute second
"""
_KNOWN = frozenset(_NAMES.split())
_LETTERS = {" g", " m", " l", " L", " s", " h", " t", " V", " W", " K", " N", " J"}  # after a blank; 12 A is a code
_SCALE = {"k", "K", "M", "B", "G", "T", "bn", "mn", "Mio", "Mrd"}  # 5k and 3.2M: powers of ten are one ending


def without_codes(counts: Mapping[str, int], found: Mapping[str, Near | None]) -> dict[str, Near | None]:
    """The texts with what they lack to be numbers, where None marks those whose ending is no unit.

    A unit is one of a list, has a degree sign or a stroke in it, or is the same in nine of ten rows that have another,
    after three numbers or more: `0, 1, 2, 3 or more` are categories.

    Args:
        counts: The rows of each text.
        found: The texts that are no numbers, by `number_text.near`.
    """
    rows, numbers = Counter[str](), defaultdict[str, set[str]](set)
    for text, near in found.items():
        if near is not None and near.unit and not _is_known(near.unit):
            rows[_one(near.unit)] += counts[text]
            numbers[_one(near.unit)].add(near.core)
    common, count = rows.most_common(1)[0] if rows else ("", 0)
    one = common if count >= SHARE * rows.total() and len(numbers[common]) >= LEAST else None

    def kept(near: Near | None) -> bool:
        return near is not None and (not near.unit or _is_known(near.unit) or _one(near.unit) == one)

    return {text: near if kept(near) else None for text, near in found.items()}


def _is_known(unit: str) -> bool:
    name = unit.strip().casefold()
    return unit in _LETTERS or "°" in unit or "/" in unit or name in _KNOWN or name.removesuffix("s") in _KNOWN


def _one(unit: str) -> str:
    """One ending for singular and plural, capitals, blanks and powers of ten."""
    name = unit.strip()
    return "power of ten" if name in _SCALE else name.casefold().removesuffix("s")
