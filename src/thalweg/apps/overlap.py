"""How much to hide from a likelihood ratio, without labels or a judge: the least at which the two laws overlap.

Where data and draws are told apart at once, the logistic loss has nothing left to learn and the ratio ranks draws by
whatever betrays them all. So a ladder of ways, from hiding nothing to hiding most, is climbed by short trainings; the
first whose AUC on rows not seen is at most `BAND` is taken, or that of least AUC where none is.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from thalweg.apps.views import View, is_writing

BAND = 0.9
SHORTER = 4  # a trial's share of the steps
FAINT, WIDE = 0.3, (0.3, 3.0)  # deviations of the data
Noise = float | tuple[float, float]


class Trial(NamedTuple):
    """A way that was tried, and the AUC on rows not seen."""

    view: View
    noise: Noise
    auc: float


def ways(real: Tensor, view: View | Literal["auto"], noise: Noise | Literal["auto"]) -> list[tuple[View, Noise]]:
    """What may be tried, the least that hides first; what is given is kept, and "ink" is for writing only.

    Pixels under faint noise, pixels under noise of all scales, the data's tones under such noise, ink under such noise.
    """
    shown: list[View] = ["pixels", "pixels"] if real.ndim != 4 else ["pixels", "pixels", "tone"]
    if is_writing(real):
        shown.append("ink")
    if view != "auto":
        shown = [view, view]
    found: list[tuple[View, Noise]] = []
    for step, name in enumerate(shown):
        way = (name, (WIDE if step else FAINT) if noise == "auto" else noise)
        if way not in found:
            found.append(way)
    return found


def trials(ways: Sequence[tuple[View, Noise]], auc: Callable[[View, Noise], float]) -> tuple[Trial, ...]:
    """Those that were tried, up to the first in the band."""
    tried: list[Trial] = []
    for view, noise in ways:
        tried.append(Trial(view, noise, auc(view, noise)))
        if tried[-1].auc <= BAND:
            break
    return tuple(tried)


def chosen(tried: Sequence[Trial]) -> Trial:
    """The one of least AUC, which is the last where it is in the band."""
    return min(tried, key=lambda trial: trial.auc)
