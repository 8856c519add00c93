"""The models that are served: by name, with their version, and what each can do."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from thalweg.bundle.classes import numbers_among
from thalweg.bundle.servable import (
    Calibrated,
    Classifies,
    Explains,
    Inpaints,
    ReadsTables,
    Reranks,
    Samples,
    Servable,
    TensorSpec,
)
from thalweg.core.errors import UserError
from thalweg.data.columns.column_reader import Column
from thalweg.data.columns.encoding import Columns
from thalweg.serve.errors import HttpError, of_user_error, unusable

CAPABILITIES = {
    "explain": Explains,
    "sample": Samples,
    "inpaint": Inpaints,
    "rerank": Reranks,
    "classify": Classifies,
}
OPTIONS = ("alpha", "top", "n", "seed", "temperature", "label", "keep")  # of a request
BINS = 40  # of the histogram of normal energies
OUTER = 0.5  # per cent of them that the end bins gather


class ServedModel(NamedTuple):
    """A model under the name that clients call it by.

    `columns`: what those of a table hold, one an input. `truths`: names of those of true and false. `ignored`: names
    of columns that a table may have beside them. `why_no_gaps`: why no value may be missing.
    """

    name: str
    version: str
    servable: Servable
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    can: tuple[str, ...]
    columns: Columns | None = None
    ignored: frozenset[str] = frozenset()
    why_no_gaps: str | None = None
    truths: frozenset[str] = frozenset()

    @property
    def has_categories(self) -> bool:
        """Whether it is known which categories some columns had in the fit."""
        return self.columns is not None and any(c.categories or c.other for c in self.columns.columns)

    @property
    def fields(self) -> dict[str, str]:
        """Arguments in an error that a client knows, by what it calls them."""
        names = (*(spec.name for spec in self.inputs), *OPTIONS)
        return {"labels": "label", **{name: name for name in names}}

    def number_of_class(self, label: int | str | None) -> int | None:
        """The number of a class that is given by its name; others as they are. 422 for a name that there is not."""
        if not isinstance(label, str):
            return label
        names = self.servable.labels if isinstance(self.servable, Classifies) else ()
        if not names:
            raise unusable(f"must be left out, as {self.name} has no classes", "label")
        try:
            return numbers_among(names, [label], "label")[0]
        except UserError as error:
            raise of_user_error(error, self.fields) from error

    def lacks(self, what: str) -> HttpError:
        """501 for a route that this model has not, which says what it has."""
        text = f"{self.name} cannot {what}; it can {', '.join(self.can)}"
        return HttpError(501, "not_supported", text, field="model")

    def describe(self) -> dict[str, Any]:
        """What the page and a client need to know of it."""
        servable = self.servable
        return {
            "name": self.name,
            "version": self.version,
            "title": servable.title,
            "content": servable.content,
            "inputs": [spec_of(spec) for spec in self.inputs],
            "outputs": [spec_of(spec) for spec in self.outputs],
            "flag_rate": servable.flag_rate,
            "can": list(self.can),
            "labels": list(servable.labels) if isinstance(servable, Classifies) else None,
            "histogram": histogram(servable.calibration_energies) if isinstance(servable, Calibrated) else None,
        }


class Models(dict[str, ServedModel]):
    """All of them by name."""

    @classmethod
    def of(cls, servables: Mapping[str, Servable], versions: Mapping[str, str]) -> "Models":
        """Each with its version, "1" where none is given."""
        return cls({name: _model(name, versions.get(name, "1"), one) for name, one in servables.items()})

    def find(self, name: str | None) -> ServedModel:
        """The model of that name; the only one where none is named. 404 for a name that is not served."""
        if name is None and len(self) == 1:
            return next(iter(self.values()))
        if name is None:
            raise HttpError(400, "malformed", f"must name one of the models {', '.join(self)}", field="model")
        if name not in self:
            raise HttpError(404, "not_found", f"must be one of the models {', '.join(self)}", field="model")
        return self[name]


def spec_of(spec: TensorSpec) -> dict[str, Any]:
    """A tensor's metadata as JSON holds it."""
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def histogram(energies: np.ndarray) -> dict[str, list[float]] | None:
    """Edges (41,) and counts (40,) of normal energies; the outer 0.5 % lie in the end bins. None: none can be made."""
    energies = np.asarray(energies, np.float64)
    energies = energies[np.isfinite(energies)]
    if not len(energies):
        return None
    try:
        with np.errstate(all="ignore"):
            low, high = np.percentile(energies, [OUTER, 100 - OUTER])
            counts, edges = np.histogram(np.clip(energies, low, high), BINS, (low, high) if high > low else None)
    except ValueError:  # too far apart, or too close together
        return None
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _model(name: str, version: str, servable: Servable) -> ServedModel:
    can = ("score", *(word for word, protocol in CAPABILITIES.items() if isinstance(servable, protocol)))
    found = ServedModel(name, version, servable, tuple(servable.inputs), tuple(servable.outputs), can)
    if isinstance(servable, ReadsTables):
        found = found._replace(
            ignored=frozenset(servable.ignored), why_no_gaps=servable.why_no_gaps, columns=servable.columns
        )
    if found.columns is not None:
        found = found._replace(truths=frozenset(column.name for column in found.columns.columns if column.truth))
    if servable.content != "table" or found.columns is not None:
        return found
    columns = (Column(spec.name, () if spec.datatype == "BYTES" else None) for spec in found.inputs)
    return found._replace(columns=Columns(tuple(columns)))
