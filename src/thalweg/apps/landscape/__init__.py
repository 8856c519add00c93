"""The energy as a landscape: surfaces, basins, paths, and pictures of them."""

from thalweg.apps.landscape.basins import Basins, Descent, basins, descent
from thalweg.apps.landscape.paths import Path, Trace, denoising, interpolation, through_noise
from thalweg.apps.landscape.surface import Surface, plane, window
from thalweg.apps.landscape.survey import Survey, survey

__all__ = [
    "Basins",
    "Descent",
    "Path",
    "Surface",
    "Survey",
    "Trace",
    "basins",
    "denoising",
    "descent",
    "interpolation",
    "plane",
    "survey",
    "through_noise",
    "window",
]
