"""The landscape as one self-contained HTML page: a surface that the reader can turn, with points that move on it."""

import base64
import html
import json
import math
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from torch import Tensor

from thalweg.apps.landscape.figures import COLOURS
from thalweg.apps.landscape.film import Film
from thalweg.apps.landscape.surface import Surface
from thalweg.apps.landscape.survey import Survey
from thalweg.evaluate.pictures import image_png

PAGE = Path(__file__).with_name("page.html")
SIZE = 72  # cells along the longer side
HOLE = 255
FINE = 65535


def page(found: Survey, film: Film, *, title: str) -> bytes:
    """The page's bytes, some 200 kB: heights as bytes, places as 16-bit numbers, images as PNG, all in base64."""
    heights = [film.heights(k, SIZE).numpy() for k in range(len(film.surfaces))]
    surface = film.surfaces[-1]
    rows, columns = heights[0].shape
    scene: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "wide": float(surface.s[-1] - surface.s[0]),
        "deep": float(surface.t[-1] - surface.t[0]),
        "heights": [
            _text(np.where(np.isnan(h), HOLE, np.nan_to_num(h) * 254).round().astype(np.uint8)) for h in heights
        ],
        "limits": [[round(v, 4) for v in pair] for pair in film.limits],
        "sigmas": film.sigmas,
        "shown": film.shown,
        "points": [_places(points, surface) for points in film.points],
        "data": _places(found.data[:300], surface) if found.in_plane else "",
        "corners": _places(surface.corners, surface) if len(surface.corners) else "",
        "images": [_image(x) for x in found.examples] if found.kind == "image" else [],
        "colours": _colours(),
        "what": film.what,
        "unit": "−log p, nats" if found.normalised else "energy, nats",
        "holes": sum(s.num_holes for s in film.surfaces),
    }
    assert all(math.isfinite(v) for pair in film.limits for v in pair)
    text = Template(PAGE.read_text("utf-8")).substitute(
        title=html.escape(title),
        scene=json.dumps(scene, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )
    return text.encode()


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _places(points: Tensor, surface: Surface) -> str:
    """(n, 2) as shares of the surface's sides, in 16 bits each; 65535 twice where a point is not there, or outside."""
    found = []
    for k, axis in enumerate((surface.s, surface.t)):
        found.append(((points[:, k] - axis[0]) / (axis[-1] - axis[0])).double().numpy())
    shares = np.stack(found, axis=1)
    known = np.nan_to_num(shares, nan=-1.0)
    inside = np.all((known >= 0) & (known < 1), axis=1)
    coded = np.where(inside[:, None], known.clip(0, 1) * (FINE - 1), FINE).round()
    return _text(coded.astype("<u2"))


def _image(x: Tensor) -> str:
    """A PNG data address."""
    return "data:image/png;base64," + base64.b64encode(image_png(x)).decode()


def _colours() -> str:
    """The colour map, 256 times six hexadecimal digits."""
    from matplotlib import colormaps

    table = (colormaps[COLOURS](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return table.tobytes().hex()
