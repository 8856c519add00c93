"""A trained energy as a service or an export sees it: arrays by name in, arrays by name out.

`served` composes the class of what the energy can do, so that `isinstance` of a Protocol tells it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thalweg.bundle import conformal
from thalweg.bundle.classes import class_names
from thalweg.bundle.exportable import Plan
from thalweg.bundle.image_reasons import has_reasons, image_reasons
from thalweg.bundle.servable import NUMPY, Content, Servable, TensorSpec
from thalweg.bundle.tempered_draws import draw, draw_frames
from thalweg.core.check import share
from thalweg.core.errors import UserError
from thalweg.data.columns.encoding import Columns
from thalweg.energy.outcomes import Conditional

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

ALPHA = 0.01  # as of `Bundle.score`
NO_GAPS = "the model takes no missing values; fill them, or drop the row"


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
            texts = self.bundle.layout.categories
            return [TensorSpec(name, "BYTES" if name in texts else "FP64", (-1,)) for name in names]
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
    def columns(self) -> Columns | None:
        return self.bundle.layout.columns if self.content == "table" else None

    @property
    def ignored(self) -> Collection[str]:
        return self.bundle.layout.ignored

    @property
    def why_no_gaps(self) -> str | None:
        return NO_GAPS

    @property
    def flag_rate(self) -> float | None:
        return None if self.bundle.held_out_energies is None else ALPHA

    def get_ready(self) -> None:
        self.bundle.keep_frozen()

    def score(self, rows: Mapping[str, np.ndarray], *, alpha: Any = None) -> dict[str, np.ndarray]:
        x = self._rows(rows)
        if alpha is not None and self.bundle.held_out_energies is None:
            raise UserError("must be left out, as the model has no calibration and flags nothing", argument="alpha")
        found = {name: part.cpu().numpy() for name, part in self.bundle.score(x).items()}
        if "p_value" in found:
            found["flag"] = found["p_value"] <= checked_alpha(alpha, ALPHA, len(found["p_value"]))
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
        """The rows (B, *) of a model of numbers, by the names of the inputs, in data units."""
        names = self.bundle.layout.names
        return rows["x"] if names is None else np.stack([rows[name] for name in names], axis=1)

    def _rows(self, rows: Mapping[str, np.ndarray]) -> Any:
        """What the bundle takes: an array, a frame by the names of its columns, or a list of str."""
        require_inputs(self.inputs, rows)
        if self.columns is not None:  # a frame is made where there is anything to say of the rows alone
            x = self.columns.encode_arrays(rows)
            return as_table(rows) if x is None or not np.isfinite(x).all() else x
        return [str(text) for text in rows["x"]] if self.content == "text" else rows["x"]


class CalibratedBundle(ServedBundle):
    """One with energies of held-out rows."""

    @property
    def calibration_energies(self) -> np.ndarray:
        """Raised by their rounding, as p-values compare with them (`conformal.raised`)."""
        held_out = self.bundle.held_out_energies
        return np.empty(0, np.float32) if held_out is None else conformal.raised(held_out.cpu().numpy())


class SamplingBundle(ServedBundle):
    """One of a law of whole rows."""

    def sample(self, n: int, *, seed: int = 0, temperature: float = 1.0, label: int | None = None) -> np.ndarray:
        return self._shown(draw(self.bundle, n, seed=seed, temperature=temperature, label=label))

    def sample_frames(
        self, n: int, *, seed: int = 0, temperature: float = 1.0, label: int | None = None, frames: int = 12
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        how: Any = {"seed": seed, "temperature": temperature, "label": label, "frames": frames}
        for x, energies in draw_frames(self.bundle, n, **how):
            yield self._shown(x), energies.cpu().numpy()

    def _shown(self, x: torch.Tensor) -> np.ndarray:
        if self.content == "table" and (self.bundle.layout.categories or self.bundle.layout.truths):
            return np.array([*self.bundle.layout.decode(x).values()], object).T
        if self.content != "text":
            return x.cpu().numpy()
        found = np.empty(len(x), object)
        found[:] = self.bundle.texts(x)
        return found


class InpaintingBundle(ServedBundle):
    """One of images."""

    def inpaint(self, x: np.ndarray, observed: np.ndarray, *, n: int = 1, seed: int = 0) -> Iterator[np.ndarray]:
        """As `Inpaints` has it. Completion i is the only one of `Bundle.inpaint` at the i-th seed from `seed`."""
        for i in range(n):
            found = self.bundle.inpaint(torch.from_numpy(x), torch.from_numpy(observed), seed=(seed + i) % 2**64)
            yield found[0].cpu().numpy()


class ClassifyingBundle(ServedBundle):
    """One of a joint energy E(x, y) of rows and classes."""

    @property
    def labels(self) -> Sequence[str]:
        return class_names(self.bundle)

    def classify(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.bundle.classify(self._rows(rows)).cpu().numpy()


class ExplainingTexts(ServedBundle):
    """One of texts."""

    def explain(self, rows: Mapping[str, np.ndarray], *, top: int = 3) -> list[dict[str, Any]]:
        """Of each text its letters with their surprise, the `top` most surprising, and the repair."""
        return [_letters(found, top) for found in self.bundle.explain(self._rows(rows))]


class ExplainingImages(ServedBundle):
    """One of images near which a likelier image can be found."""

    def explain(self, rows: Mapping[str, np.ndarray], *, top: int = 3) -> list[dict[str, Any]]:
        """`map` (H, W), nats that each pixel adds to the energy beside `repaired` (C, H, W), a likelier image near."""
        x = torch.as_tensor(np.asarray(self._rows(rows), np.float32))
        where, repaired = image_reasons(self.bundle, x)
        both = zip(where.cpu().numpy(), repaired.cpu().numpy(), strict=True)
        return [{"map": one, "repaired": other} for one, other in both]


def served(bundle: "Bundle") -> Servable:
    """The `Servable` of a bundle, of a class that has what the bundle can do and nothing else."""
    conditional = isinstance(bundle.model, Conditional)
    image = bundle.kind == "image"
    able: dict[type[ServedBundle], bool] = {
        CalibratedBundle: bundle.held_out_energies is not None,
        SamplingBundle: not conditional,
        InpaintingBundle: image and not conditional,
        ClassifyingBundle: bool(bundle.num_classes),
        ExplainingTexts: bundle.kind == "text",
        ExplainingImages: has_reasons(bundle),
    }
    parts = tuple(part for part, holds in able.items() if holds)
    cls = type("Served", parts, {}) if parts else ServedBundle
    return cls(bundle)


def _letters(found: Any, top: int) -> dict[str, Any]:
    """What JSON holds of a text's explanation."""
    order = sorted(range(len(found.surprise)), key=lambda i: -found.surprise[i])[:top]
    return {
        "text": found.text,
        "surprise": list(found.surprise),
        "reasons": [
            {"place": i + 1, "letter": found.text[i], "surprise": found.surprise[i], "expected": found.expected[i]}
            for i in order
        ],
        "repair": found.repair,
        "repair_energy": found.repair_energy,
        "edits": [str(edit) for edit in found.edits],
    }


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


def checked_alpha(alpha: Any, default: float, num_rows: int) -> Any:
    """alpha, a number in [0, 1] or one a row (B,); the default for None, or for NaN in a row. UserError for others."""
    if alpha is None:
        return default
    values = np.asarray(alpha, float)
    if values.ndim:
        if values.shape != (num_rows,):
            text = f"must be one number, or one for each of the {num_rows} rows, and has the shape {values.shape}"
            raise UserError(text, argument="alpha")
        values = np.where(np.isnan(values), default, values)
    for value in np.unique(values):
        share(alpha=float(value))
    return values


def as_table(rows: Mapping[str, np.ndarray]) -> Any:
    """A frame of columns (B,) or (B, 1)."""
    import pandas as pd

    return pd.DataFrame({name: np.reshape(value, len(value)) for name, value in rows.items()})
