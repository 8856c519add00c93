"""What is wrong with a set of samples, in words, each figure beside what the data score."""

from torch import Tensor

from thalweg.monitor.figure import FIGURES

MOST_FAULTS = 3
ENOUGH = 0.9  # of the samples: the classes that hold so many are named


def percent(x: float) -> str:
    """A share as whole percents."""
    return f"{100 * x:.0f} %"


def classes_held(shares: Tensor) -> tuple[int, float]:
    """The fewest classes that hold 90 %, and the share that they hold."""
    held = shares.sort(descending=True).values.cumsum(0)
    k = int((held < ENOUGH).sum())
    return k + 1, held[min(k, len(held) - 1)].item()


def fault(name: str, value: float, usual: float, shares: tuple[Tensor, Tensor]) -> str:
    """One figure that is bad, and the data's."""
    if name == "histogram":
        (few, held), (real, _) = classes_held(shares[0]), classes_held(shares[1])
        if few < real:
            return (
                f"{percent(held)} lie in {few} of {len(shares[0])} classes (the data need {real} for {percent(ENOUGH)})"
            )
        return f"their classes agree with the data's by {percent(value)} (as many data: {percent(usual)})"
    text = {
        "vendi": "their variety is {} of that of as many data (data: {})",
        "coverage": "they come near {} of the held-out rows (as many data: {})",
        "duplicates": "{} nearly repeat another sample (data: {})",
        "lineages": "{} go back to different beginnings (data: {})",
        "density": "they lie in {} of the neighbourhoods that data should lie in (data: {})",
        "nearest_train": "their distance to the nearest training row is {} of that of unseen rows (data: {})",
    }[name]
    return text.format(percent(value), percent(usual))


def sentence(
    n: int,
    figures: dict[str, float],
    reference: dict[str, tuple[float, float]],
    bad: list[str],
    shares: tuple[Tensor, Tensor],
    p_value: float,
) -> str:
    """The worst figures of n samples in words, worst first; without any, that there is no fault."""
    if not bad:
        return f"{n} samples show no fault beside held-out data (p = {p_value:.2g})."
    faults = [fault(name, figures[name], reference[name][0], shares) for name in bad[:MOST_FAULTS]]
    kinds = {
        "variety": "lack variety",
        "noise": "are unlike the data",
        "memorisation": "are near copies of training rows",
    }
    return f"{n} samples {kinds[FIGURES[bad[0]].kind]}: {'; '.join(faults)}."
