"""Arrays and rows as the plain routes write them."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thalweg.serve.models import ServedModel


def predictions(found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Outputs (B, …) by name as an object a row."""
    names = list(found)
    return [dict(zip(names, row, strict=True)) for row in zip(*(v.tolist() for v in found.values()), strict=True)]


def packed(value: np.ndarray) -> dict[str, Any]:
    """An array in uint8, scaled so that its lowest number is 0 and its highest 255, which are told."""
    value = np.asarray(value, np.float64)
    low, high = float(value.min()), float(value.max())
    scaled = (value - low) * (255 / (high - low)) if high > low else np.zeros_like(value)
    return {**as_bytes(np.rint(scaled).astype(np.uint8)), "low": low, "high": high}


def as_bytes(value: np.ndarray) -> dict[str, Any]:
    """A uint8 array as {"shape", "data"}."""
    return {"shape": list(value.shape), "data": base64.b64encode(value.tobytes()).decode()}


def pixels(value: np.ndarray) -> dict[str, Any]:
    """Images in [0, 1] as {"shape", "data"} of uint8."""
    return as_bytes(np.rint(np.clip(value, 0, 1) * 255).astype(np.uint8))


def explained(value: Any, base64: bool) -> Any:
    """What a servable explains, with its arrays as lists or packed."""
    if isinstance(value, np.ndarray):
        return packed(value) if base64 else value.tolist()
    if isinstance(value, Mapping):
        return {name: explained(part, base64) for name, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def rows(model: ServedModel, drawn: np.ndarray, base64: bool) -> Any:
    """Drawn rows: objects of a table, strings of texts, lists of numbers, or pixels in base64."""
    content = model.servable.content
    if content == "image" and base64:
        return pixels(drawn)
    if content == "table" and drawn.ndim == 2:
        names: Sequence[str] = [spec.name for spec in model.inputs]
        return [dict(zip(names, row, strict=True)) for row in drawn.tolist()]
    return drawn.tolist()
