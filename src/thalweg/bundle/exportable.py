"""What an export asks of a stored object beside what a service asks: its scores as programs of tensor operations.

A further application is exported by giving its `Servable` these members; nothing in `thalweg.export` changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.bundle.servable import TensorSpec

Arrays = Mapping[str, np.ndarray]


class Categories(NamedTuple):
    """The codes of the texts of an input of BYTES: those of `codes`, and `unknown` for any other."""

    codes: Mapping[str, int]
    unknown: int

    def of(self, texts: np.ndarray) -> np.ndarray:
        """(B,) int64."""
        return np.array([self.codes.get(text, self.unknown) for text in texts.tolist()], np.int64)


@dataclass(frozen=True, kw_only=True)
class Program:
    """One graph: a module from tensors to tensors, and what it should give.

    Args:
        name: What the graph computes, and its file's name: "energy", "gradient", "step".
        module: Takes the inputs in order, codes in the place of texts, and returns a tuple of the outputs; in `eval`
            mode, on the CPU.
        inputs: By name, with their types; the first size is the number of rows.
        outputs: The same.
        reference: The library's own outputs for inputs by name.
        of_rows: The inputs that belong to so many rows of the servable; a generator for the noise.
        units: What an input or output is measured in.
        categories: Of each input of BYTES.
        plain: The module uses none but the operations of `thalweg.export.plain_onnx`.
        spans: Of inputs the lowest and the highest outputs that the library's own rounding may give, by name, for a
            function with steps; None for a smooth one.
    """

    name: str
    module: nn.Module
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    reference: Callable[[Arrays], Arrays]
    of_rows: Callable[[Arrays, torch.Generator], Arrays] = lambda rows, generator: rows
    units: Mapping[str, str] = field(default_factory=dict)
    categories: Mapping[str, Categories] = field(default_factory=dict)
    plain: bool = False
    spans: Callable[[Arrays], Mapping[str, tuple[np.ndarray, np.ndarray]]] | None = None

    def tensors(self, rows: Arrays) -> list[Tensor]:
        """The module's arguments."""
        codes = {name: known.of(rows[name]) for name, known in self.categories.items()}
        return [torch.from_numpy(np.array(codes.get(i.name, rows[i.name]), order="C")) for i in self.inputs]


class Plan(NamedTuple):
    """The programs of an object, the energy first, and what cannot be exported: why, by name."""

    programs: Sequence[Program]
    left_out: Mapping[str, str]


@runtime_checkable
class Exportable(Protocol):
    """A servable that other runtimes can compute."""

    def plan(self) -> Plan:
        """What would be exported. UserError, before any work, for an object whose energy cannot be."""
        ...

    def typical_rows(self, n: int, seed: int) -> dict[str, np.ndarray]:
        """n rows like normal ones, by the names of the servable's inputs, for checks."""
        ...
