"""The figures of a set of samples: their names, which way is worse, and what a bad one says."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

FARTHEST = 20.0  # deviations: beyond, a figure is ruined and its size says no more
SMALLEST = 1e-3  # a deviation: a figure that never varies among the data still has a scale
Kind = Literal["variety", "noise", "memorisation"]


class Figure(NamedTuple):
    """One figure: `worse` is the bad direction, `kind` what a bad one says of a run, `meaning` what it measures."""

    name: str
    worse: Literal["low", "high"]
    kind: Kind
    meaning: str


FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure("vendi", "low", "variety", "effective number of different samples, over that of as many held-out rows"),
        Figure("coverage", "low", "variety", "share of held-out rows that have a sample in their neighbourhood"),
        Figure(
            "histogram", "low", "variety", "agreement of the shares of classes or clusters with the data's; 1: equal"
        ),
        Figure("duplicates", "high", "variety", "share of samples that nearly repeat another sample"),
        Figure("lineages", "low", "variety", "share of chains that go back to different beginnings"),
        Figure(
            "density",
            "low",
            "noise",
            "neighbourhoods of held-out rows that hold a sample, over the five that hold a row",
        ),
        Figure(
            "nearest_train", "low", "memorisation", "distance to the nearest training row, over that of unseen rows"
        ),
    )
}


def deviations(figures: Mapping[str, float], reference: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """How many deviations each figure lies on the bad side of the data's mean, 0 on the good side and 20 at most.

    Their mean orders sets of samples: 0 is as good as data, and one figure that is ruined counts for a few.
    """
    found = {}
    for name, (mean, deviation) in reference.items():
        if name in figures:
            gap = figures[name] - mean if FIGURES[name].worse == "high" else mean - figures[name]
            found[name] = min(max(gap, 0.0) / max(deviation, SMALLEST), FARTHEST)
    return found
