"""The whole detector of tables as one module: columns in, energy, p-value and flag out."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.graph.kernels import KernelGraph, MixtureGraph
from thalweg.apps.anomaly.graph.lookup import LogPValueGraph, PValueGraph, hold
from thalweg.apps.anomaly.graph.scalings import GRAPHS, Powers
from thalweg.apps.anomaly.tabular.tabular_energy import NEIGHBOURS, TabularEnergy
from thalweg.data.columns.column_reader import Column


class TabularGraph(nn.Module):
    """`TabularEnergy` of rows x (B, D) float64: energies (B,), nats; NaN where a number is NaN or infinite."""

    largest: Tensor

    def __init__(self, energy: TabularEnergy):
        super().__init__()
        hold(self, largest=np.finfo(np.float64).max)
        self.powers = Powers(energy._powers)
        self.names = list(energy.scales_)
        self.scalings = nn.ModuleDict({name: GRAPHS[name](s) for name, s in energy.scalings_.items()})
        self.kernels = nn.ModuleDict(
            {
                name: KernelGraph(kernel, NEIGHBOURS if name == "standard" else 0)
                for name, kernel in energy.kernels_.items()
            }
        )
        self.mixtures = nn.ModuleDict({name: MixtureGraph(part) for name, part in energy.mixtures_.items()})
        self.scales = nn.ModuleList(LogPValueGraph(scale) for scale in energy.scales_.values())

    def forward(self, x: Tensor) -> Tensor:
        """(B,)."""
        number = x.abs() <= self.largest
        x = self.powers(torch.where(number, x, 0.0))
        parts: dict[str, Tensor] = {}
        for name, scaling in self.scalings.items():
            y = scaling(x)
            parts[name], distance = self.kernels[name](y)
            if name == "standard":
                parts["distance"] = distance
            if name in self.mixtures:
                parts[f"{name}.mixture"] = self.mixtures[name](y)
        values = [scale(parts[name]) for name, scale in zip(self.names, self.scales, strict=True)]
        mean = torch.stack(values, dim=1).mean(1)
        return torch.where(number.all(1), mean, torch.nan)


class TableGraph(nn.Module):
    """A detector of tables: an input for each column, or one `x` (B, D) of an array, to energy, p-value and flag.

    Columns of numbers are float64 (B,). Of a column of K categories the input is a code (B,) int64: 0 … K - 1, then, in
    this order, "other" where there is one, a new category, and a missing value. A row that the detector would refuse,
    with a missing or an infinite number, has the energy and the p-value NaN, and is flagged.
    """

    rate: Tensor

    def __init__(self, detector: EnergyDetector):
        super().__init__()
        assert isinstance(detector.energy_, TabularEnergy)
        self.energy = TabularGraph(detector.energy_)
        self.p_value = PValueGraph(detector.calibration_.ranked)
        hold(self, rate=detector.rate_)
        self.columns: Sequence[Column] = () if detector.columns_ is None else detector.columns_.columns
        for i, column in enumerate(self.columns):
            if column.categories is not None:
                hold(self, **{f"codes{i}": code_rows(column)})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(energy, p_value, flag), (B,) each."""
        u = self.energy(torch.cat(self._encoded(inputs), dim=1) if self.columns else inputs[0])
        known = u == u
        p = torch.where(known, self.p_value(u), torch.nan)
        return u, p, (p <= self.rate) | ~known

    def _encoded(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """(B, width) of each column."""
        parts = []
        for i, (column, value) in enumerate(zip(self.columns, inputs, strict=True)):
            coded = column.categories is not None
            parts.append(torch.index_select(self.get_buffer(f"codes{i}"), 0, value) if coded else value[:, None])
        return parts


def code_rows(column: Column) -> np.ndarray:
    """(width + 2, width): the rows of a column's codes, -1 in all places for a new category, NaN for a missing one."""
    codes = np.eye(column.width + 2, column.width)
    codes[column.width], codes[column.width + 1] = -1.0, np.nan
    return codes


def code_of(column: Column) -> tuple[dict[str, int], int, int]:
    """(the code of each category, that of a new one, that of a missing one)."""
    assert column.categories is not None
    known = {text: i for i, text in enumerate(column.categories)}
    return known, len(known) if column.other else column.width, column.width + 1
