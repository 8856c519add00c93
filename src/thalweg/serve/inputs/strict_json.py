"""JSON as RFC 8259 has it and no more: no NaN, no key twice, no nesting or number that takes more than its bytes.

The text is looked at before it is parsed: strings are cut out by one expression, and what is left, brackets, colons
and digits, says how deep it is nested and how many keys it has. The parser is pydantic's, which takes a key that comes
twice for one; so the keys that it found are counted.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json

from thalweg.serve.errors import malformed

STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # it matches at each quote, so time is linear
OTHERS = bytes(set(range(256)) - set(b"[]{}"))
OPENING = np.zeros(256, np.int64)
OPENING[list(b"[{")], OPENING[list(b"]}")] = 1, -1
DIGITS = bytes(ord("d") if chr(i).isdigit() and i < 128 else ord(" ") for i in range(256))
LONGEST_NUMBER = b"d" * 310  # digits: the largest float64 has 309


class Parsed(NamedTuple):
    """A value, and whether true, false or null stand anywhere in it."""

    value: Any
    literals: bool


def parse(data: bytes, max_depth: int) -> Parsed:
    """The value of a JSON text in UTF-8; 400 for anything else."""
    bare = STRING.sub(b"", data)
    objects = bare.count(b"{")
    if objects + bare.count(b"[") > max_depth:  # else it cannot be deeper, in whatever order they come
        depth = np.cumsum(OPENING[np.frombuffer(bare.translate(None, OTHERS), np.uint8)])
        if depth.max() > max_depth:
            raise malformed(f"must be JSON that is nested at most {max_depth} deep")
    if len(bare) >= len(LONGEST_NUMBER) and LONGEST_NUMBER in bare.translate(DIGITS):
        raise malformed("must be JSON with numbers of at most 309 digits")
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise malformed(f"must be JSON: {str(error)[:200]}") from error
    keys = bare.count(b":")
    if keys > 1 and keys != _count_keys(value, objects):
        raise malformed("must be JSON in which no key comes twice in one object")
    return Parsed(value, any(word in bare for word in (b"true", b"false", b"null")))


def parse_object(data: bytes, max_depth: int) -> Parsed:
    """The same, where it must be an object."""
    found = parse(data, max_depth)
    if not isinstance(found.value, dict):
        raise malformed("must be a JSON object")
    return found


def _count_keys(value: Any, objects: int) -> int:
    """The keys of all objects in a value, of which there are so many."""
    keys, waiting = 0, [value]
    while waiting and objects:
        item = waiting.pop()
        if isinstance(item, dict):
            objects -= 1
            keys += len(item)
            waiting.extend(v for v in item.values() if isinstance(v, dict | list))
        elif isinstance(item, list):
            waiting.extend(v for v in item if isinstance(v, dict | list))
    return keys
