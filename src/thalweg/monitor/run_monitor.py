"""The monitor of a run: looks at its samples, judges their figures over time, and keeps what it found.

It fills `thalweg.training.signals.Signals`, which training declares and reads. Its files in the run folder are
`monitor.jsonl`, a row a look, and `monitor/step-N.png`, a grid of the samples of a look.
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from thalweg.core.json_lines import JsonLines
from thalweg.core.store import write_bytes
from thalweg.monitor import sequential
from thalweg.monitor.figure import FIGURES
from thalweg.monitor.sequential import ReferenceFigures, TestResult

if TYPE_CHECKING:
    from thalweg.monitor.diversity import Diversity

log = logging.getLogger("thalweg")
Policy = Literal["none", "warn", "adjust", "rollback", "stop"]  # as `thalweg.training.signals` has it
NAME, FOLDER = "monitor.jsonl", "monitor"
MOST_PICTURES, IN_PICTURE = 100, 40  # of a run; samples of one
WHAT = {
    "variety": "the samples have lost variety",
    "noise": "the samples turn to noise",
    "memorisation": "the samples are copies of training rows",
}


class LookSamples(NamedTuple):
    """The samples of a look: rows x (N, *) in data units, and for chains the number of each one's lineage (N,)."""

    x: Tensor
    lineages: Tensor | None = None


class SampleSource(Protocol):
    """Where the samples of a look come from."""

    def __call__(self, state: Any, precision: str, share: float) -> LookSamples:
        """A share of the samples of a training's state, which is only read."""
        ...


class SecondOpinion(Protocol):
    """A judge that is asked where figures raise an alarm, such as `monitor.vision.VisionJudge`."""

    def __call__(self, samples: Tensor, step: int) -> dict[str, Any]:
        """The opinion on samples; `overrules`, true where it is to be believed and finds no fault."""
        ...


class RunMonitor:
    """Looks at the samples of a run, and says when they have become worse than they were.

    A look is a function of the training's state and the monitor's memory: a resumed run finds the same. A look that
    fails is logged and passed over: a monitor never ends a training by an error of its own.

    Args:
        diversity: Makes the figures of a set of samples, before the first look: a short run has none.
        samples: Where samples come from.
        num_samples: Of a look.
        least: Steps between two looks, where these cost nothing.
        folder: The run folder; None: nothing is written.
        policy: What is done about an alarm (`thalweg.training.remedy`).
        every: Steps between two looks; None: `least` or a multiple.
        max_cost: The largest share of the time for looks, where `every` is None.
        opinion: Asked before an alarm is acted upon.
    """

    def __init__(
        self,
        diversity: Callable[[], "Diversity"],
        samples: SampleSource,
        *,
        num_samples: int,
        least: int,
        folder: Path | None = None,
        policy: Policy = "adjust",
        every: int | None = None,
        max_cost: float = 0.03,
        opinion: SecondOpinion | None = None,
    ):
        self._make, self.samples, self.num_samples = diversity, samples, num_samples
        self.least, self.folder = least, folder
        self.policy: Policy = policy
        self.every, self.max_cost, self.opinion = every, max_cost, opinion
        self.precision = "fp32"
        self._row: dict[str, Any] = {}
        self._broken = False

    @cached_property
    def diversity(self) -> "Diversity":
        """The figures of a set of samples."""
        return self._make()

    @cached_property
    def reference(self) -> ReferenceFigures:
        """Mean and deviation of each figure over held-out sets of the size of a look."""
        return self.diversity.reference(self.num_samples)

    def begin(self, step: int, precision: str) -> None:
        """Drop rows and pictures of later steps, which a process that was killed wrote."""
        self.precision = precision
        if self.folder is None:
            return
        rows = [row for row in JsonLines(self.folder / NAME).read() if row["step"] <= step] if step else []
        write_bytes(self.folder / NAME, "".join(json.dumps(row) + "\n" for row in rows).encode())
        for path in (self.folder / FOLDER).glob("step-*.png"):
            if not path.stem[5:].isdigit() or int(path.stem[5:]) > step:
                path.unlink(missing_ok=True)

    def seconds(self, state: Any) -> float:
        """The time of a look: of all its figures, and of a quarter of its samples four times."""
        share = 0.25
        start = time.perf_counter()
        look = self.samples(state, self.precision, share)
        drawn = time.perf_counter() - start
        enough = torch.cat([look.x] * round(1 / share))
        self.diversity.figures(enough)  # the first has tables to make
        start = time.perf_counter()
        self.diversity.figures(enough)
        return drawn / share + time.perf_counter() - start

    def look(self, state: Any) -> tuple[str | None, bool, str, Any]:
        """(alarm, calm, sentence, memory) after a look at the samples of a training's state."""
        memory, start = state.monitor or sequential.start(), time.perf_counter()
        self._row = {"step": state.step}
        try:
            look = self.samples(state, self.precision, 1.0)
            values = self.diversity.figures(look.x, lineages=look.lineages)
            classes = [] if look.lineages is None else self.diversity.classes(look.x).tolist()
        except (ValueError, RuntimeError) as error:  # UserError is the first: not finite samples, say
            log.warning("no look at the samples at step %d: %s", state.step, error)
            self._row |= {"figures": {}, "reference": {}, "suspicion": {}, "alarm": None, "sentence": str(error)}
            return None, False, "", memory
        after, found = sequential.update(memory, values, self.reference)
        if classes and (before := memory.get("classes")):
            values |= {"switch_rate": sum(a != b for a, b in zip(classes, before, strict=True)) / len(classes)}
        kind = FIGURES[found.alarm].kind if found.alarm else None
        sentence = self._sentence(values, found)
        opinion = self._ask(look.x, state.step) if kind else None
        if opinion and opinion.get("overrules"):
            sentence, kind = f"{sentence}; not acted upon: {opinion['sentence']}", None
            after = sequential.after_action(after)
        self._row |= {
            "figures": values,
            "reference": {name: list(pair) for name, pair in self.reference.items()},
            "best": found.best,
            "suspicion": found.suspicion,
            "alarm": kind,
            "sentence": sentence,
            "opinion": opinion,
            "seconds": round(time.perf_counter() - start, 3),
        }
        self._draw(look.x, state.step)
        return kind, found.calm, sentence, {**after, "classes": classes}

    def settle(self, memory: Any, action: str | None) -> Any:
        """The memory after the run acted or not; writes the row of the look."""
        self._write({**self._row, "action": action})
        acted = bool(action) and action != "warned"
        return {**memory, **sequential.after_action(memory)} if acted else memory

    def _ask(self, x: Tensor, step: int) -> dict[str, Any] | None:
        return self.opinion(x, step) if self.opinion is not None else None

    def _sentence(self, values: dict[str, float], found: TestResult) -> str:
        """What is found, in plain words with the figures."""
        names = [found.alarm] if found.alarm else found.going_on or [n for n, s in found.suspicion.items() if s > 0]
        if not names:
            return "nothing suspicious"
        parts = []
        for name in names:
            best = found.best[name]
            earlier = "" if best is None else f", {best:.2f} at its best"
            own = f"{self.reference[name][0]:.2f} for held-out data"
            parts.append(f"{name} {values[name]:.2f}{earlier}, {own} ({FIGURES[name].meaning})")
        if found.alarm:
            return f"{WHAT[FIGURES[found.alarm].kind]}: {parts[0]}"
        return ("still worse: " if found.going_on else "suspicious: ") + "; ".join(parts)

    def _write(self, row: dict[str, Any]) -> None:
        if self.folder is None or self._broken:
            return
        try:
            with (self.folder / NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            log.warning("%s: not written any more (%s); the training goes on", self.folder / NAME, error.strerror)
            self._broken = True

    def _draw(self, x: Tensor, step: int) -> None:
        """A picture of the look; every other one of too many is removed."""
        if self.folder is None or x.ndim != 4 or x.shape[1] not in (1, 3):
            return
        from thalweg.evaluate.pictures import grid

        folder = self.folder / FOLDER
        with suppress(OSError, ValueError):  # a picture must not end a run
            folder.mkdir(exist_ok=True)
            write_bytes(folder / f"step-{step:08d}.png", grid(x[:IN_PICTURE], columns=10))
            drawn = sorted(folder.glob("step-*.png"))
            for path in drawn[1:-1:2] if len(drawn) > MOST_PICTURES else ():
                path.unlink(missing_ok=True)
