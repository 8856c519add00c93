"""The plan of a run: number of steps, precision, number of threads; made once, before the first step.

A budget in minutes is turned into a number of steps by timing a few steps on a copy of the state. Schedules are
functions of the step, so a resumed run repeats them exactly. Where the precision is "auto", the timing also decides
whether bfloat16 autocast is faster on this machine. Where other work takes cores, a budget in minutes also decides by
timing whether fewer threads are faster.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.store import read_json, write_json
from thalweg.training.settings import TrainSettings

NAME = "plan.json"
Precision = Literal["fp32", "bf16"]
WARM, TIMED = 3, 12
TRIAL_SECONDS = 3.0  # after which two steps of each kind are enough: of large images each takes seconds
CHECKPOINT_SECONDS = 60.0
BF16_MUST_SAVE = 0.9  # of fp32's time: for less it is not worth the lost digits
FEWER_MUST_SAVE = 0.9  # of the time on all threads
HOPELESS = 2.0  # times fp32's time in the warm-up: emulated bfloat16 would make the timing take minutes


class Plan(BaseModel):
    """The plan of a run, stored as plan.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    num_steps: int = Field(ge=1)
    precision: Precision
    threads: int = Field(ge=1, le=1024)
    step_seconds: float = Field(ge=0)  # as timed
    checkpoint_every: int = Field(ge=1)  # steps
    world_size: int = Field(1, ge=1)  # processes that share a batch
    device: str = "cpu"  # the kind on which the run began
    look_every: int = Field(default=0, ge=0)  # steps between looks at the samples; 0: there are none

    def require(self, world_size: int, folder: Path) -> None:
        """UserError for another number of processes, which would divide the batch and the chains in another way."""
        if self.world_size != world_size:
            launch = "without torchrun" if self.world_size == 1 else f"by torchrun --nproc-per-node {self.world_size}"
            raise UserError(
                f"the run began with world size {self.world_size}, and this is {world_size}",
                argument=str(folder),
                hint=f"go on {launch}, or start another run",
            )

    def save(self, folder: Path) -> None:
        """Write plan.json."""
        write_json(folder / NAME, self.model_dump())

    @classmethod
    def load(cls, folder: Path) -> "Plan | None":
        """The plan in a run folder, None where there is none."""
        path = folder / NAME
        if not path.exists():
            return None
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the whole file"
            raise DamagedFile(
                f"not a plan ({where}: {fault['msg']})",
                argument=str(path),
                hint="restore the run's own, or start another run",
            ) from error


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Run torch on this number of threads in the block. The number belongs to the process.

    Sums are split by thread, so the bits of a run depend on it.
    """
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def make_plan(
    settings: TrainSettings,
    trial: Callable[[Precision], Callable[[], object]],
    world_size: int = 1,
    device: str = "cpu",
    may_take_fewer: bool = False,
) -> Plan:
    """Time steps and make the plan.

    `trial(precision)` gives a callable that runs one step on a copy of the state, and returns when it is done. A budget
    in minutes `may_take_fewer` threads than torch has.
    """
    fewer = free_threads()  # before the trial steps add to the load
    names: tuple[Precision, ...] = ("fp32", "bf16") if settings.precision == "auto" else (settings.precision,)
    steps = {name: trial(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    began, alone = time.perf_counter(), world_size == 1  # several ranks meet in each step, and their clocks differ
    for i in range(WARM + TIMED):  # interleaved, so that a drift of the machine's speed hits both
        if i > 1 and alone and time.perf_counter() - began > TRIAL_SECONDS:
            break
        for name in tuple(steps):
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
        if not alone or len(steps) == 1:
            continue
        told = i == WARM - 1 or (i == 0 and time.perf_counter() - began > TRIAL_SECONDS)
        if told and min(seconds[names[-1]]) > HOPELESS * min(seconds[names[0]]):
            del steps["bf16"]
    median = {name: statistics.median(seconds[name][min(WARM, len(seconds[name]) - 1) :]) for name in steps}
    precision: Precision = names[0]
    if len(median) > 1 and median["bf16"] < BF16_MUST_SAVE * median["fp32"]:
        precision = "bf16"
    threads, each = torch.get_num_threads(), median[precision]
    if may_take_fewer and settings.steps is None and world_size == 1 and device == "cpu" and fewer < threads:
        threads, each = _faster(steps[precision], threads, fewer)
    num_steps = settings.steps or max(1, round((settings.minutes or 10.0) * 60 / each))
    every = settings.checkpoint_every or max(1, min(round(CHECKPOINT_SECONDS / each), num_steps))
    return Plan(
        num_steps=num_steps,
        precision=precision,
        threads=threads,
        step_seconds=each,
        checkpoint_every=every,
        world_size=world_size,
        device=device,
    )


def free_threads() -> int:
    """The cores that the work of the last minute left free, 1 or more."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        load = 0.0
    return max(1, (os.cpu_count() or 1) - round(load))


def _faster(step: Callable[[], object], threads: int, fewer: int) -> tuple[int, float]:
    """(number of threads, seconds a step): `fewer`, where that saves enough.

    Threads meet many times a step, and all wait for the one that shares its core with other work.
    """
    seconds: dict[int, list[float]] = {threads: [], fewer: []}
    began = time.perf_counter()
    for i in range(WARM + TIMED):
        if i > 1 and time.perf_counter() - began > TRIAL_SECONDS:
            break
        for number, found in seconds.items():
            with num_threads(number):
                start = time.perf_counter()
                step()
                found.append(time.perf_counter() - start)
    median = {number: statistics.median(found[min(WARM, len(found) - 1) :]) for number, found in seconds.items()}
    chosen = fewer if median[fewer] < FEWER_MUST_SAVE * median[threads] else threads
    return chosen, median[chosen]
