"""The section "History" of a report: what the monitor of a run saw while it trained."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.evaluate.pictures import BLUE, GREY, ORANGE, new_figure
from thalweg.evaluate.report_parts import image, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEETS, VERDICTS = 6, 40  # at most
BAND = 2.0  # deviations on each side of the mean
RED = "#b3261e"


def history_section(looks: Sequence[Mapping[str, Any]], pictures: Mapping[int, Path]) -> str:
    """HTML of the section; "" without a look.

    Args:
        looks: In the order of their steps, each with `step`, `figures` (name to a finite number), `reference` (name to
            mean and deviation of real data), `alarm`, `sentence` and `action` (texts or None), and `opinion` (of a
            vision-language model, or None).
        pictures: PNG files of samples, by step.
    """
    if not looks:
        return ""
    alarms = [look for look in looks if look["alarm"]]
    first, last = looks[0]["step"], looks[-1]["step"]
    when = f"{len(looks)} times, from step {first:,} to step {last:,}" if len(looks) > 1 else f"once, at step {first:,}"
    told = f"{len(alarms)} of the looks raised an alarm." if alarms else "No look raised an alarm."
    parts = [
        "<h2>History</h2>",
        f"<p>The monitor looked at samples {when}. <b>{told}</b> An alarm means that a figure had become worse than in "
        "the run's own best earlier window.</p>",
    ]
    if (figure := history_curves(looks)) is not None:
        caption = (
            "Blue: this run's samples. Grey band: as many real, unseen examples, mean and two deviations. Red lines: "
            "alarms; orange dashes: what the run did about them."
        )
        parts.append(image(figure, "figures of the monitor over training steps", caption))
    return "".join([*parts, _verdicts(looks), _sheets(looks, pictures)])


def history_curves(looks: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Each figure of the monitor over the steps, with the band of real data; None where there is no figure."""
    names = list(dict.fromkeys(name for look in looks for name in look["figures"]))
    if not names:
        return None
    figure = new_figure(8.4, 1.25 * len(names) + 0.6, layout="constrained")
    axes = list(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0])
    for ax, name in zip(axes, names, strict=True):
        found = [(look["step"], look["figures"][name]) for look in looks if name in look["figures"]]
        band = [(look["step"], *look["reference"][name]) for look in looks if name in look["reference"]]
        if band:
            steps, means, deviations = zip(*_widened(band), strict=True)
            low, high = ([m + side * BAND * d for m, d in zip(means, deviations, strict=True)] for side in (-1, 1))
            ax.fill_between(steps, low, high, color=GREY, alpha=0.25, linewidth=0)
        ax.plot(
            *zip(*found, strict=True), color=BLUE, linewidth=1.2, marker=".", markersize=4 if len(found) < 60 else 0
        )
        for look in looks:
            if look["alarm"]:
                ax.axvline(look["step"], color=RED, linewidth=1)
            if look["action"]:
                ax.axvline(look["step"], color=ORANGE, linewidth=1.6, linestyle=(0, (3, 2)))
        ax.set_ylabel(name.replace("_", " "), fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[-1].set_xlabel("training step")
    return figure


def _widened(band: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """A band of one look gets a width, so that it can be seen."""
    step, mean, deviation = band[0]
    return band if len(band) > 1 else [(step - 0.5, mean, deviation), (step + 0.5, mean, deviation)]


def _verdicts(looks: Sequence[Mapping[str, Any]], most: int = VERDICTS) -> str:
    """A table of alarms, actions and opinions; without any, of the last look."""
    told = [look for look in looks if look["alarm"] or look["action"] or look["opinion"]] or list(looks[-1:])
    cells = {"alarm": "none", "sentence": "", "action": ""}  # each with what stands for None
    rows = [
        [f"{look['step']:,}", *(html.escape(look[key] or none) for key, none in cells.items())] for look in told[:most]
    ]
    more = f"<p>{len(told) - most:,} later verdicts are in monitor.jsonl.</p>" if len(told) > most else ""
    return table(["step", "alarm", "what the monitor said", "what the run did"], rows, own=(), text=(1, 2, 3)) + more


def _sheets(looks: Sequence[Mapping[str, Any]], pictures: Mapping[int, Path]) -> str:
    """Samples of a few looks side by side."""
    alarms = {look["step"]: look["alarm"] for look in looks if look["alarm"]}
    steps = chosen([*pictures], [step for step in alarms if step in pictures])
    figures = [
        image(
            pictures[step].read_bytes(),
            f"samples at step {step}",
            f"Step {step:,}" + (f": alarm, {html.escape(alarms[step])}" if step in alarms else ""),
            pixels=True,
        )
        for step in steps
    ]
    return f'<div class="pair">{"".join(figures)}</div>' if figures else ""


def chosen(steps: Sequence[int], alarms: Sequence[int], most: int = SHEETS) -> list[int]:
    """At most so many of the steps, in order: the first, the last, each alarm, and others evenly between."""
    if len(steps) <= most:
        return sorted(steps)
    found = {min(steps), max(steps)}
    others = sorted(set(alarms) - found)
    room = min(most - len(found), len(others))
    found |= {others[i * len(others) // room] for i in range(room)}
    between, room = sorted(set(steps) - found), most - len(found)
    found |= {between[(i + 1) * len(between) // (room + 1)] for i in range(room)}
    return sorted(found)
