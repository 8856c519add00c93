"""The densities in the plane of `data.toy`, 24,000 rows drawn at the address (seed, "toy/NAME")."""

from thalweg.core.rng import generator
from thalweg.data.sets.base import NamedSet, RawData
from thalweg.data.toy import TOYS


class _Generated(NamedSet):
    def load(self, seed: int) -> RawData:
        toy = TOYS[self.name]
        x = toy.sample(24_000, generator(seed, f"toy/{self.name}"))
        return RawData(x, None, f"{self.name}, generated: {toy.sentence}", 1 / 6)


class TwoMoons(_Generated):
    """Two arcs."""

    name = "two-moons"


class EightGaussians(_Generated):
    """A mixture on a circle."""

    name = "eight-gaussians"


class Checkerboard(_Generated):
    """Squares."""

    name = "checkerboard"


class Rings(_Generated):
    """Circles."""

    name = "rings"
