"""The plan of a scoring: which rows of which files make a block, and what all of it depends on.

It is the same whenever it is made of the same files, options and model, so a later call can tell which blocks are
there. What it depends on is kept as JSON in the output folder; the blocks follow from it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from thalweg.core.errors import DamagedFile, UserError
from thalweg.scale import addresses
from thalweg.scale.sources import FileFacts, Source

PLAN, DONE = "_plan.json", "_done.json"
FORMAT = 3
READERS = 16  # files that are examined at a time
EVALUATED = 256  # rows that a network takes at once: blocks are multiples of it
BLOCK_CELLS, MAX_BLOCK = 4 << 20, 65_536


class Input(NamedTuple):
    """A file of rows.

    Args:
        address: As the output names it.
        path: What a worker opens.
        size: Bytes.
        modified: A text that changes when the file does; empty where the hash is of the whole file.
        examined: Rows, hash and offsets.
    """

    address: str
    path: str
    size: int
    modified: str
    examined: FileFacts


class RowBlock(NamedTuple):
    """Rows first … first + rows - 1 of a file, which become one part of the output.

    Args:
        number: Of the part.
        file: The number of the file.
        first: From 0.
        rows: One or more.
        span: Of a CSV the bytes where they lie.
    """

    number: int
    file: int
    first: int
    rows: int
    span: tuple[int, int]

    @property
    def part(self) -> str:
        """The name of the file of their scores."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True)
class Plan:
    """What is scored by what.

    Args:
        model: What kind of model, and the SHA-256 of its manifest.
        options: What changes the scores.
        block_rows: Rows of a block, the last one of a file aside.
        inputs: The files.
    """

    model: dict[str, str]
    options: dict[str, Any]
    block_rows: int
    inputs: tuple[Input, ...]

    @cached_property
    def blocks(self) -> list[RowBlock]:
        """All blocks, in the order of files and rows."""
        found: list[RowBlock] = []
        for number, each in enumerate(self.inputs):
            starts = each.examined.starts
            for k, first in enumerate(range(0, each.examined.rows, self.block_rows)):
                rows = min(self.block_rows, each.examined.rows - first)
                span = (starts[k], starts[k + 1]) if starts else (0, 0)
                found.append(RowBlock(len(found), number, first, rows, span))
        return found

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        import thalweg

        inputs = [
            {
                "address": each.address,
                "bytes": each.size,
                "modified": each.modified,
                "sha256": each.examined.sha256,
                "rows": each.examined.rows,
            }
            for each in self.inputs
        ]
        about = {"format": FORMAT, "thalweg": thalweg.__version__, "model": self.model, "options": self.options}
        return {**about, "block_rows": self.block_rows, "inputs": inputs}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the JSON."""
        return _digest(self.to_dict())


def block_rows_for(cells: int) -> int:
    """Rows of so many numbers that make 32 MiB in float64, at most 65,536."""
    rows = min(MAX_BLOCK, BLOCK_CELLS // max(cells, 1))
    return max(EVALUATED, rows // EVALUATED * EVALUATED)


def examine(sources: Sequence[Source], block_rows: int) -> tuple[Input, ...]:
    """Count and hash files, several at a time."""

    def one(source: Source) -> Input:
        size, modified = addresses.stat(source.path)
        found = source.examine(block_rows)
        return Input(source.address, source.path, size, "" if source.whole else modified, found)

    with ThreadPoolExecutor(READERS) as pool:
        return tuple(pool.map(one, sources))


def absolute(address: str) -> str:
    """What names the file from every folder."""
    return address if addresses.is_remote(address) else os.path.abspath(address)


def _digest(plan: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def resumable_plan_digest(plan: Plan, folder: str, *, only_changed: bool) -> str | None:
    """The digest of the plan that the output folder has, if this plan may go on from it; None where there is none.

    UserError: another plan, which it names by what differs, or a folder that holds something else. `only_changed`: the
    files of the other plan may have changed, but for their numbers of rows.
    """
    names = addresses.names_in(folder)
    if PLAN not in names:
        foreign = [name for name in names if not name.startswith(".")]
        if foreign:
            text = f"must be empty or hold a scoring that was begun, and holds {foreign[0]!r}"
            raise UserError(text, argument=folder, hint="name another folder")
        return None
    where = addresses.inside(folder, PLAN)
    try:
        old = json.loads(addresses.read_bytes(where))
        before = {each["address"]: each for each in old["inputs"]}
        new = plan.to_dict()
        same = _shape(old) == _shape(new)
        changed = "" if old == new else _difference(old, new, before)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise DamagedFile("must be the plan of a scoring", argument=where, hint="remove the folder") from error
    if old == new or (same and only_changed):
        return _digest(old)
    more = "; or give --only-changed, if rows were corrected in their places" if same else ""
    hint = f"name another folder for these scores, or remove this one to begin again{more}"
    raise UserError(f"holds scores of another plan: {changed}", argument=folder, hint=hint)


def write_plan(plan: Plan, folder: str) -> None:
    """Write the plan into the output folder."""
    addresses.make_folder(folder)
    addresses.write_bytes(addresses.inside(folder, PLAN), json.dumps(plan.to_dict(), indent=1).encode())


def _shape(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan without what the files hold: what makes its blocks."""
    return {**plan, "inputs": [(each["address"], each["rows"]) for each in plan["inputs"]]}


def _difference(old: dict[str, Any], new: dict[str, Any], before: dict[str, Any]) -> str:
    """What differs first, in words. StopIteration where it is nothing that a plan holds."""
    tests: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("the model has changed since", lambda plan: plan.get("model")),
        ("the version of thalweg is another one", lambda plan: (plan.get("thalweg"), plan.get("format"))),
        ("the options are others", lambda plan: plan.get("options")),
        ("--block-rows is another one", lambda plan: plan.get("block_rows")),
    ]
    found = next((text for text, part in tests if part(old) != part(new)), None)
    if found == "the options are others":
        name = next(k for k in new["options"] if old["options"].get(k) != new["options"][k])
        return f"{name} was {old['options'].get(name)!r}"
    if found is not None:
        return found
    now = {each["address"]: each for each in new["inputs"]}
    for address, each in now.items():
        if address not in before:
            return f"the file {address} has come since"
        if before[address] != each:
            return f"the file {address} has changed since"
    return f"the file {next(name for name in before if name not in now)} is no longer among the input"
