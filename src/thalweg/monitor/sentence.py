"""What is wrong with a set of samples, in words, each figure beside what the data score."""

from torch import Tensor

from thalweg.monitor.figure import Kind

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


def of_classes(value: float, usual: float, own: Tensor, data: Tensor) -> str:
    """The classes that hold most samples, or how far the shares agree."""
    (few, held), (real, _) = classes_held(own), classes_held(data)
    if few < 0.8 * real:
        most = data.sort(descending=True).values[:few].sum().item()
        return f"{percent(held)} lie in {few} of {len(own)} classes (data: {percent(most)} in as many)"
    return f"their classes agree with the data's by {percent(value)} (data: {percent(usual)})"


def fault(name: str, value: float, usual: float) -> str:
    """One figure that is bad, and the data's."""
    text = {
        "vendi": "their variety is {} of that of as many data",
        "coverage": "they come near {} of the held-out rows (data: {})",
        "duplicates": "{} nearly repeat another sample (data: {})",
        "density": "they lie in {} of the neighbourhoods that a set like the data lies in (data: {})",
        "nearest_train": "their distance to the nearest training row is {} of that of unseen rows (data: {})",
    }[name]
    return text.format(percent(value), percent(usual))


def sentence(n: int, faults: list[str], kind: Kind | None, p_value: float) -> str:
    """The worst faults of n samples in words, worst first; without any, that there is none."""
    if kind is None:
        return f"{n} samples show no fault beside held-out data (p = {p_value:.2g})."
    kinds = {"variety": "lack variety", "noise": "are unlike the data", "memorisation": "are too near to training rows"}
    return f"{n} samples {kinds[kind]}: {'; '.join(faults[:MOST_FAULTS])}."
