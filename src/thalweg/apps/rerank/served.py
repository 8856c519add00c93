"""A re-ranker as a service or an export sees it."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.bundle.exportable import Plan
from thalweg.bundle.servable import Content, TensorSpec
from thalweg.bundle.served import NO_GAPS, as_table, require_inputs
from thalweg.core.errors import UserError
from thalweg.data.columns.encoding import Columns

if TYPE_CHECKING:
    from thalweg.apps.rerank.reranker import EnergyReranker


class ServedReranker:
    """The `Servable` of a re-ranker, whose energies score candidates, and which chooses among them."""

    flag_rate = None

    def __init__(self, reranker: "EnergyReranker"):
        self.reranker, self.title = reranker, reranker.title
        shape = reranker.shape
        if shape is None:
            raise UserError("must say what a candidate looks like", argument="run", hint="serve a fitted re-ranker")
        self._shape: tuple[int, ...] = shape

    @property
    def content(self) -> Content:
        if len(self._shape) > 1:
            return "image"
        return "rows" if self.reranker.layout.names is None else "table"

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        if self.content == "table":
            layout = self.reranker.layout
            texts = layout.categories
            return [TensorSpec(name, "BYTES" if name in texts else "FP64", (-1,)) for name in layout.names or ()]
        return [TensorSpec("x", "FP32", (-1, *self._shape))]

    @property
    def columns(self) -> Columns | None:
        return self.reranker.layout.columns if self.content == "table" else None

    @property
    def ignored(self) -> Collection[str]:
        return self.reranker.layout.ignored

    @property
    def why_no_gaps(self) -> str | None:
        return NO_GAPS

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return [TensorSpec("energy", "FP32", (-1,))]

    def score(self, rows: Mapping[str, np.ndarray], *, alpha: Any = None) -> dict[str, np.ndarray]:
        if alpha is not None:
            raise UserError("must be left out, as a re-ranker flags nothing", argument="alpha")
        return {"energy": self.reranker.energies(self._rows(rows)).numpy().astype(np.float32)}

    def rerank(self, rows: Mapping[str, np.ndarray], *, keep: int | None = None) -> dict[str, np.ndarray]:
        found = self.reranker.ranked(self._rows(rows), keep)
        order = found.order if keep is None else found.kept
        return {"order": order.numpy(), "energy": found.energies.numpy().astype(np.float32)}

    def plan(self) -> Plan:
        from thalweg.apps.rerank.graph import plan_of

        return plan_of(self)

    def typical_rows(self, n: int, seed: int) -> dict[str, np.ndarray]:
        from thalweg.apps.rerank.graph import typical_rows

        return typical_rows(self, n, seed)

    def _rows(self, rows: Mapping[str, np.ndarray]) -> Any:
        require_inputs(self.inputs, rows)
        return as_table(rows) if self.content == "table" else rows["x"]
