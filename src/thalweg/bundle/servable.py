"""What a service or an export asks of a stored object: named inputs and outputs, scores, and what else it can do.

`StoredType.servable()` gives it. Inputs and outputs are numpy arrays by name, so that a protocol of tensors, a CSV and
a graph of another runtime all speak of the same things. A further application is served and exported by writing a class
with these members beside it; nothing in `serve` or `export` changes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from thalweg.data.columns.encoding import Columns

Datatype = Literal["BOOL", "UINT8", "INT64", "FP32", "FP64", "BYTES"]  # as the Open Inference Protocol names them
Content = Literal["image", "rows", "table", "text"]
NUMPY: dict[Datatype, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,  # of str
}


class TensorSpec(NamedTuple):
    """A named tensor; the first size, -1, is the number of rows, B, which is the same for all inputs of a call."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@runtime_checkable
class Servable(Protocol):
    """Something that scores rows.

    `content` says what a row is: an image (input `x`, (B, C, H, W) in [0, 1]), numbers without names (`x`, (B, D)), a
    row of a table (an input (B,) for each column: FP64, or BYTES where it holds categories), or a text (`x`, (B,)
    BYTES).
    """

    @property
    def title(self) -> str:
        """What it is, for people: "a detector"."""
        ...

    @property
    def content(self) -> Content: ...

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Of `energy` (nats, low = normal), `log_prob`, `p_value`, `flag`, `probabilities` (B, K) those that it has."""
        ...

    @property
    def flag_rate(self) -> float | None:
        """The share of normal rows that is flagged if no `alpha` is given; None without calibration."""
        ...

    def score(self, rows: Mapping[str, np.ndarray], *, alpha: Any = None) -> dict[str, np.ndarray]:
        """All `outputs` of B >= 1 rows. `alpha`: flags p-values up to this; a number, or one a row (B,).

        A missing value is NaN, or None in BYTES. Row i of the answer depends on row i alone, up to 1e-5 relative.
        UserError for what cannot be scored: its `argument` is the input's name where there is one.
        """
        ...


@runtime_checkable
class GetsReady(Protocol):
    """A servable whose calls cost less once it was made ready for many."""

    def get_ready(self) -> None:
        """What calls share is computed now. It is not changed afterwards."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A servable with the energies of normal rows, (n,) nats, that p-values compare with."""

    @property
    def calibration_energies(self) -> np.ndarray: ...


@runtime_checkable
class ReadsTables(Protocol):
    """A servable that knows what the columns of its tables hold and how their texts are read."""

    @property
    def columns(self) -> Columns | None:
        """The columns, one an input; None where rows have no names."""
        ...

    @property
    def ignored(self) -> Collection[str]:
        """Columns that a table may have beside them, as the fit left them out."""
        ...

    @property
    def why_no_gaps(self) -> str | None:
        """Why no value may be missing, and what mends it; None where values may be missing."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A servable that gives reasons."""

    def explain(self, rows: Mapping[str, np.ndarray], *, top: int = 3) -> list[dict[str, Any]]:
        """What JSON holds of each row's reasons: `reasons`, a list of {feature, share, value, repair}, of a table; of
        images `map` (H, W), how much each pixel raises the energy, and where there is one `repaired` (C, H, W); of
        texts the surprise of each letter and the repair.
        """
        ...


@runtime_checkable
class Samples(Protocol):
    """A servable that draws rows."""

    def sample(self, n: int, *, seed: int = 0, temperature: float = 1.0, label: int | None = None) -> np.ndarray:
        """(n, *) in data units, or n str of a model of texts, from about exp(-E / temperature)."""
        ...

    def sample_frames(
        self, n: int, *, seed: int = 0, temperature: float = 1.0, label: int | None = None, frames: int = 12
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same draws on their way: (positions (n, *), energies (n,)) about so many times, the draw last."""
        ...


@runtime_checkable
class Inpaints(Protocol):
    """A servable that completes images."""

    def inpaint(self, x: np.ndarray, observed: np.ndarray, *, n: int = 1, seed: int = 0) -> Iterator[np.ndarray]:
        """n completions (B, C, H, W) of x one after another; `observed` (B, C, H, W) bool says what stays."""
        ...


@runtime_checkable
class Reranks(Protocol):
    """A servable that chooses among candidates."""

    def rerank(self, rows: Mapping[str, np.ndarray], *, keep: int | None = None) -> dict[str, np.ndarray]:
        """`order` (K,) indices, best first, of all or of `keep`, and `energy` (B,)."""
        ...


@runtime_checkable
class Classifies(Protocol):
    """A servable that gives p(label | x)."""

    @property
    def labels(self) -> Sequence[str]: ...

    def classify(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """(B, K) calibrated probabilities, rows summing to 1."""
        ...
