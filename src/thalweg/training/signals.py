"""What a training is told about its samples: the Protocol that a monitor fills, and when it is asked.

Training knows no sampler and no figure of quality. A monitor (`thalweg.monitor`) looks at samples at some steps and
says whether they have become worse than they were; `thalweg.training.remedy` acts on what it says. The monitor's
memory is part of the checkpoint, so a resumed run hears the same verdicts at the same steps.
"""

import math
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

Policy = Literal["none", "warn", "adjust", "rollback", "stop"]
LEAST_LOOKS = 4  # a run with fewer has no earlier window to be compared with


class MonitorSettings(BaseModel):
    """How the samples of a run are watched, and what is done once they are worse."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    policy: Policy = "adjust"
    every: int | None = Field(None, ge=1, description="steps between looks; so many that looking is cheap if not given")
    num_samples: int | None = Field(None, ge=16, description="samples of a look; 128 chains or 64 draws if not given")
    max_cost: float = Field(
        0.03, gt=0, le=1, description="largest share of the time for looks, where every is not given"
    )
    judge: Literal["statistical", "vision"] = "statistical"
    vision: dict[str, Any] = {}  # of the vision judge: `monitor.vision.settings.VisionSettings`

    @field_validator("policy", mode="before")
    @classmethod
    def _off_is_none(cls, value: Any) -> Any:
        """What YAML makes of `off`."""
        return "none" if value is False else value


class Verdict(NamedTuple):
    """What a look at the samples found.

    Args:
        alarm: What has become worse, "variety", "noise" or "memorisation", at the look that confirms it; else None.
        calm: Whether nothing is suspicious: a good time for a snapshot.
        sentence: In plain words.
        memory: The monitor's, after the look: a tree that a checkpoint can hold.
    """

    alarm: str | None
    calm: bool
    sentence: str
    memory: Any = None


class Signals(Protocol):
    """A monitor of the samples of one run."""

    policy: Policy
    every: int | None  # steps between two looks; None: `least`, or a multiple of it
    least: int
    max_cost: float  # share of the time

    def begin(self, step: int, precision: str) -> None:
        """Start or go on at a step: what was written for later steps, by a process that was killed, is dropped.

        `precision`: in which samples are drawn, "fp32" or "bf16".
        """
        ...

    def seconds(self, state: Any) -> float:
        """The time of a look, measured."""
        ...

    def look(self, state: Any) -> tuple[str | None, bool, str, Any]:
        """A `Verdict` on the samples of a `TrainState`, which is only read; its field `monitor` has the memory."""
        ...

    def settle(self, memory: Any, action: str | None) -> Any:
        """The memory after what was done about the last look; the look is written to the log."""
        ...


class Watch(NamedTuple):
    """Signals, and the number of steps between two looks; 0: there are none."""

    signals: Signals
    every: int

    def due(self, step: int) -> bool:
        """Whether the samples are looked at after a step."""
        return self.every > 0 and step % self.every == 0


def may_look(signals: Signals, num_steps: int) -> bool:
    """Whether a run of so many steps has room for `LEAST_LOOKS`; true where the user says how often."""
    return signals.every is not None or num_steps >= LEAST_LOOKS * signals.least


def look_every(signals: Signals | None, state: Any, num_steps: int, step_seconds: float) -> int:
    """Steps between looks: a multiple of `signals.least`, so that they take at most `max_cost` of the time.

    0, and no look, where the run is too short for `LEAST_LOOKS`.
    """
    if signals is None:
        return 0
    if signals.every is not None:
        return signals.every
    if not may_look(signals, num_steps):
        return 0
    wanted = signals.seconds(state) / (signals.max_cost * max(step_seconds, 1e-9))
    every = signals.least * max(1, math.ceil(wanted / signals.least))
    return every if num_steps >= LEAST_LOOKS * every else 0
