"""Parts of the output: one Parquet file of scores a block, which says of which block and plan it is.

A part is written aside and renamed. One that is not whole, or of another plan, counts as missing.
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from thalweg.apps.anomaly.tables.score_columns import q_column
from thalweg.core.errors import DamagedFile, UserError, one_line
from thalweg.data.columns.new_categories import most_frequent
from thalweg.scale import addresses
from thalweg.scale.plan import RowBlock
from thalweg.scale.scorers import ScoredRows

if TYPE_CHECKING:
    import pyarrow as pa

KEY = b"thalweg"


class PartFacts(NamedTuple):
    """What a part says of itself.

    Args:
        rows: Rows of the block.
        flagged: Flags among them; None where the model sets none.
        energy: The sum of the energies, nats.
        content: The digest of the rows that were scored (`sources.rows_digest`).
        left_out: Rows without scores.
        first_left_out: The first of them, as `LeftOutRows` has them.
        new: By column the categories that the model does not know, as `most_frequent` has them.
        q: The digest of the q-values that were filled in; empty: they are open.
    """

    rows: int
    flagged: int | None
    energy: float
    content: str
    left_out: int
    first_left_out: Sequence[tuple[int, str]]
    new: dict[str, list[tuple[str | None, int]]]
    q: str = ""


def write(folder: str, block: RowBlock, digest: str, address: str, scored: ScoredRows, content: str) -> PartFacts:
    """Write the scores of a block beside the address of its file."""
    import pyarrow as pa

    scores, lost = scored.table, scored.left_out
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(scores), np.int32)), pa.array([address]))
    flagged = int(np.asarray(scores["flag"].drop_null(), bool).sum()) if "flag" in scores.column_names else None
    energy = float(np.asarray(scores["energy"].drop_null(), float).sum())
    found = PartFacts(len(scores), flagged, energy, content, lost.num, lost.first, most_frequent(scored.new))
    _put(folder, block, digest, scores.add_column(0, "file", names), found)
    return found


def fill(folder: str, block: RowBlock, digest: str, q: np.ndarray, q_digest: str) -> None:
    """Fill the q-values in, by the rank of each p-value."""
    table = _table(folder, block)
    q_values = q_column(table["p_value"], q)
    place = table.schema.get_field_index("q_value")
    about = _about(table.schema.metadata, block, digest)
    assert about is not None  # as `found` has seen
    _put(folder, block, digest, table.set_column(place, "q_value", q_values), about._replace(q=q_digest))


def move_to_plan(folder: str, block: RowBlock, old: str, new: str) -> None:
    """Make the part of an old plan one of a new plan, which has the same rows in this block."""
    table = _table(folder, block)
    about = _about(table.schema.metadata, block, old)
    assert about is not None  # as `found` has seen
    _put(folder, block, new, table, about)


def ranks(p: Any, levels: int) -> np.ndarray:
    """The number of calibration energies at least as high, of p-values (1 + k) / levels."""
    return np.rint(np.asarray(p, float) * levels).astype(int) - 1


def counts(folder: str, block: RowBlock, levels: int) -> np.ndarray:
    """The rows of a part by rank, (levels,)."""
    p = _table(folder, block, ["p_value"])["p_value"].drop_null()
    return np.bincount(ranks(p, levels), minlength=levels)


def found(folder: str, block: RowBlock, digest: str) -> PartFacts | None:
    """What the part of a block says; None where it is not there, not whole, or of another plan."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with _opened(folder, block) as (where, _), parquet.ParquetFile(where) as file:
            about = _about(file.schema_arrow.metadata, block, digest)
            return about if about is not None and about.rows == file.metadata.num_rows == block.rows else None
    except (pa.ArrowException, OSError, ValueError, UserError):
        return None


def _about(metadata: dict[bytes, bytes] | None, block: RowBlock, digest: str) -> PartFacts | None:
    about = json.loads((metadata or {}).get(KEY, b"{}"))
    if about.get("plan") != digest or about.get("block") != block.number:
        return None
    return PartFacts(**{name: about[name] for name in PartFacts._fields})


def _put(folder: str, block: RowBlock, digest: str, table: "pa.Table", about: PartFacts) -> None:
    from pyarrow import parquet

    text = json.dumps({"plan": digest, "block": block.number, **about._asdict()})
    file = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({KEY: text}), file, write_page_checksum=True)
    addresses.write_bytes(addresses.inside(folder, block.part), file.getvalue())


@contextmanager
def _whole(address: str) -> Iterator[None]:
    """DamagedFile where a part cannot be read, or the checksum of a page is another."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        hint = "remove it, and give the same command"
        raise DamagedFile(f"damaged ({one_line(error)})", argument=address, hint=hint) from error


@contextmanager
def _opened(folder: str, block: RowBlock) -> Iterator[tuple[Any, str]]:
    """(what Arrow reads a part from, its address)."""
    address = addresses.inside(folder, block.part)
    if not addresses.is_remote(address):
        yield address, address
        return
    with addresses.opened(address) as file:
        yield file, address


def _table(folder: str, block: RowBlock, columns: list[str] | None = None) -> "pa.Table":
    from pyarrow import parquet

    with (
        _whole(addresses.inside(folder, block.part)),
        _opened(folder, block) as (where, _),
        parquet.ParquetFile(where, page_checksum_verification=True) as file,
    ):
        return file.read(columns, use_threads=False)
