"""A trained energy as a service or an export sees it: arrays by name in, arrays by name out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thalweg.bundle.exportable import Plan
from thalweg.bundle.servable import NUMPY, Content, TensorSpec
from thalweg.core.check import share
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

ALPHA = 0.01  # as of `Bundle.score`


class ServedBundle:
    """The `Servable` of a `Bundle`: an energy of images, numbers, tables or texts, with or without classes."""

    def __init__(self, bundle: "Bundle"):
        self.bundle = bundle
        self.title = bundle.title

    @property
    def content(self) -> Content:
        if self.bundle.kind == "vector":
            return "rows" if self.bundle.layout.names is None else "table"
        return "image" if self.bundle.kind == "image" else "text"

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        names = self.bundle.layout.names
        if self.content == "table" and names is not None:
            return [TensorSpec(name, "FP64", (-1,)) for name in names]
        if self.content == "text":
            return [TensorSpec("x", "BYTES", (-1,))]
        return [TensorSpec("x", "FP64" if self.bundle.dtype == torch.float64 else "FP32", (-1, *self.bundle.shape))]

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        found = [TensorSpec("energy", "FP32", (-1,))]
        if self.bundle.normalised or self.bundle.constant is not None:
            found.append(TensorSpec("log_prob", "FP32", (-1,)))
        if self.flag_rate is not None:
            found += [TensorSpec("p_value", "FP32", (-1,)), TensorSpec("flag", "BOOL", (-1,))]
        if self.bundle.num_classes:
            found.append(TensorSpec("probabilities", "FP32", (-1, self.bundle.num_classes)))
        return found

    @property
    def flag_rate(self) -> float | None:
        return None if self.bundle.held_out_energies is None else ALPHA

    @property
    def calibration_energies(self) -> np.ndarray:
        held_out = self.bundle.held_out_energies
        return np.empty(0, np.float32) if held_out is None else held_out.cpu().numpy()

    def score(self, rows: Mapping[str, np.ndarray], *, alpha: Any = None) -> dict[str, np.ndarray]:
        x = self._rows(rows)
        found = {name: part.cpu().numpy() for name, part in self.bundle.score(x).items()}
        if "p_value" in found:
            found["flag"] = found["p_value"] <= checked_alpha(alpha, ALPHA)
        if self.bundle.num_classes:
            found["probabilities"] = self.bundle.classify(x).cpu().numpy()
        return {spec.name: np.asarray(found[spec.name], NUMPY[spec.datatype]) for spec in self.outputs}

    def plan(self) -> Plan:
        from thalweg.bundle.graphs import plan_of

        return plan_of(self)

    def typical_rows(self, n: int, seed: int) -> dict[str, np.ndarray]:
        from thalweg.bundle.graphs import typical_rows

        return typical_rows(self, n, seed)

    def rows(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """The rows (B, *) of numbers by the names of the inputs, in data units."""
        names = self.bundle.layout.names
        return rows["x"] if names is None else np.stack([rows[name] for name in names], axis=1)

    def _rows(self, rows: Mapping[str, np.ndarray]) -> Any:
        """What the bundle takes: an array, a frame by the names of its columns, or a list of str."""
        require_inputs(self.inputs, rows)
        if self.content == "table":
            return as_table(rows)
        return [str(text) for text in rows["x"]] if self.content == "text" else rows["x"]


def require_inputs(specs: Sequence[TensorSpec], rows: Mapping[str, np.ndarray]) -> None:
    """UserError unless the inputs are these, by name, in any order, and all have one number of rows, 1 or more."""
    known = [spec.name for spec in specs]
    hint = f"the inputs are {', '.join(known[:10])}"
    missing, extra = [n for n in known if n not in rows], [n for n in rows if n not in known]
    if missing:
        raise UserError("must be there", argument=missing[0], hint=hint)
    if extra:
        raise UserError("must be left out, as it is no input", argument=extra[0], hint=hint)
    counts = {name: len(value) for name, value in rows.items()}
    first = counts[known[0]]
    odd = next((name for name, count in counts.items() if count != first), None)
    if odd is not None:
        raise UserError(f"must have {first} rows, as {known[0]!r} has, not {counts[odd]}", argument=odd)
    if not first:
        raise UserError("must have one row or more", argument=known[0])


def checked_alpha(alpha: Any, default: float) -> Any:
    """alpha, a number in (0, 1] or one a row (B,); the default for None, or for NaN in a row."""
    if alpha is None:
        return default
    values = np.asarray(alpha, float)
    if values.ndim:
        values = np.where(np.isnan(values), default, values)
    for value in np.unique(values):
        share(alpha=float(value))
    return values


def as_table(rows: Mapping[str, np.ndarray]) -> Any:
    """A frame of columns (B,) or (B, 1)."""
    import pandas as pd

    return pd.DataFrame({name: np.reshape(value, len(value)) for name, value in rows.items()})
