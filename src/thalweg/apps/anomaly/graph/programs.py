"""The programs of a detector, for an export."""

from typing import TYPE_CHECKING

import numpy as np

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.graph.table import TableGraph, code_of
from thalweg.apps.anomaly.tabular.tabular_energy import TabularEnergy
from thalweg.bundle.exportable import Categories, Plan, Program
from thalweg.core.errors import UserError
from thalweg.data.columns.column_reader import Column

if TYPE_CHECKING:
    from thalweg.apps.anomaly.served import ServedDetector

NO_GRADIENT = "the energy is a step function of ranks, which has no gradient and no sampler"


def plan_of(served: "ServedDetector") -> Plan:
    """The whole detector as one graph. UserError for a detector of images, and for one of rows with gaps."""
    detector = served.detector
    if not isinstance(detector.energy_, TabularEnergy):
        text = "must be a detector of tables or arrays, as one of images is not exported"
        raise UserError(text, argument="run", hint="train its energy by `thalweg train` and export that run")
    if detector.missing_ == "marginalise":
        text = "must be fitted with missing='raise', as the law of each pattern of gaps is taken when it is met"
        raise UserError(text, argument="run", hint="fill the gaps and fit again")
    names = {spec.name for spec in served.outputs}
    twice = next((spec.name for spec in served.inputs if spec.name in names), None)
    if twice is not None:
        text = "must not be the name of a column, as an output of the graph has it"
        raise UserError(text, argument=twice, hint="rename the column and fit again")
    columns = () if detector.columns_ is None else detector.columns_.columns
    words = frozenset() if detector.columns_ is None else detector.columns_.reading.words(csv=False)
    program = Program(
        name="energy",
        module=TableGraph(detector).eval(),
        inputs=served.inputs,
        outputs=served.outputs,
        reference=served.score,
        units={"energy": "nats", "p_value": "share of normal rows", **{c.name: "as in the fit" for c in columns}},
        categories={c.name: _categories(c, words) for c in columns if c.categories is not None},
        plain=True,
        spans=lambda rows: {"energy": spans(detector, served.encoded(rows))},
    )
    return Plan([program], {"gradient": NO_GRADIENT, "step": NO_GRADIENT})


def _categories(column: Column, words: frozenset[str]) -> Categories:
    """The codes of a column's texts: a text in `words` is a missing value, unless it is a category."""
    known, unknown, missing = code_of(column)
    return Categories({**dict.fromkeys(sorted(words), missing), **known}, unknown)


def spans(detector: EnergyDetector, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest energies, (B,) each, of encoded rows whose parts' energies are off by rounding.

    Beyond 1,024 rows the library sums in float32, and each part's -log p is a step function of its energy.
    """
    energy = detector.energy_
    assert isinstance(energy, TabularEnergy)
    x = energy._checked(x)
    parts = energy._parts(x)
    rooms = energy.rounding(x, parts)
    found = [energy._fuse({name: u + sign * rooms[name] for name, u in parts.items()}) for sign in (-1, 1)]
    return found[0], found[1]


def typical_rows(detector: EnergyDetector, n: int, seed: int) -> dict[str, np.ndarray]:
    """n of the stored rows, drawn with replacement, by the names of the inputs."""
    assert isinstance(detector.energy_, TabularEnergy)
    stored = detector.energy_.rows_
    x = stored[np.random.default_rng(seed).integers(len(stored), size=n)]
    if detector.columns_ is None:
        return {"x": x}
    values = zip(*detector.columns_.decode(x), strict=True)
    return {
        column.name: np.array(part, np.float64 if column.categories is None else object)
        for column, part in zip(detector.columns_.columns, values, strict=True)
    }
