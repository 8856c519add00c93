"""What the monitor of a run has found: `monitor.jsonl`, one look a line, and the pictures of its samples.

A reader for people's views (`thalweg watch`, the report). It needs no torch, changes nothing in the folder, and takes
what is there: a file that is missing, a last line that is incomplete, keys of a later version.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from thalweg.core.json_lines import JsonLines

NAME, PICTURES = "monitor.jsonl", "monitor"
SUSPICIOUS, ALARM = 0.5, 1.0  # of a suspicion
_PICTURE = re.compile(r"step-(\d+)\.png")


class Look(NamedTuple):
    """One look of the monitor at the samples of a run."""

    step: int
    figures: dict[str, float]  # finite ones
    reference: dict[str, tuple[float, float]]  # mean and deviation over as many held-out rows
    suspicion: dict[str, float]  # 0 calm, 1 alarm
    alarm: str | None  # what is lost: "variety", "noise" or "memorisation"
    sentence: str
    action: str | None  # what the run did about it
    opinion: dict[str, Any] | None  # of a vision-language model

    def mark(self, figure: str) -> str:
        """In words how suspicious a figure is: "calm", "suspicious" or "alarm"; "" where nothing is said of it."""
        if figure not in self.suspicion:
            return ""
        value = self.suspicion[figure]
        return "alarm" if value >= ALARM else "suspicious" if value >= SUSPICIOUS else "calm"


class History:
    """The looks and pictures of one run folder; each `looks()` reads what is new."""

    def __init__(self, folder: Path):
        self.folder, self._lines = folder, JsonLines(folder / NAME)

    def looks(self) -> list[Look]:
        """The looks, in the order of their steps."""
        return [_look(row) for row in self._lines.read()]

    def pictures(self) -> dict[int, Path]:
        """The grid of samples of each step that has one, in the order of the steps."""
        try:
            paths = [*(self.folder / PICTURES).iterdir()]
        except OSError:  # no folder
            return {}
        named = ((_PICTURE.fullmatch(path.name), path) for path in paths)
        return dict(sorted((int(match[1]), path) for match, path in named if match))


def _look(row: Mapping[str, Any]) -> Look:
    action, opinion, reference = row.get("action"), row.get("opinion"), row.get("reference")
    pairs = reference.items() if isinstance(reference, dict) else ()
    return Look(
        step=row["step"],
        figures=_numbers(row.get("figures")),
        reference={
            str(name): (float(pair[0]), float(pair[1]))
            for name, pair in pairs
            if isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))
        },
        suspicion=_numbers(row.get("suspicion")),
        alarm=str(row["alarm"]) if row.get("alarm") else None,
        sentence=str(row.get("sentence") or ""),
        action=str(action) if action else None,
        opinion=opinion if isinstance(opinion, dict) else None,
    )


def _numbers(values: Any) -> dict[str, float]:
    items = values.items() if isinstance(values, dict) else ()
    return {str(name): float(value) for name, value in items if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
