"""The energy as a landscape: surfaces, basins, paths, and pictures of them."""

from thalweg.apps.landscape.basins import Basins, Descent, basins, descent
from thalweg.apps.landscape.surface import Surface, plane, window

__all__ = ["Basins", "Descent", "Surface", "basins", "descent", "plane", "window"]
