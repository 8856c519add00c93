"""One step of training and the loop over steps, in a run folder or in memory.

Step n is a function of (state after n - 1, seed, n): batch, noise and learning rate depend on the step number alone. A
non-finite loss or gradient is found before the update; the guard (`thalweg.training.guard`) decides what follows.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from thalweg.core.errors import Diverged, OutOfMemory
from thalweg.core.rng import generator
from thalweg.objective.base import Batch, Objective, after_rollbacks
from thalweg.training.distributed import ProcessGroup, SingleProcess
from thalweg.training.guard import Guard, finite, not_finite
from thalweg.training.plan import Precision
from thalweg.training.settings import TrainSettings
from thalweg.training.state import TrainState, fresh

Augment = Callable[[Tensor, torch.Generator, float], Tensor]
TRIAL_STEPS = 1_000_000
# in the texts of RuntimeErrors of the CPU, of C++ and of cuBLAS, which have no type of their own
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")


class Batches(Protocol):
    """The data of a training: rows x (B, *) in data units of any step >= 0, and their labels (B,) or None."""

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]: ...


class ToModelUnits(Protocol):
    """The part of a transform that a training uses."""

    def forward(self, x: Tensor) -> Tensor: ...


@dataclass
class Update:
    """The update of a `TrainState` by one step of an objective.

    Args:
        objective: The loss. The guard may replace it by its variant after a rollback.
        batches: The rows of each step.
        transform: Data units to model units.
        settings: Learning rate, average, precision, clipping.
        seed: Seed of all draws.
        augment: Alters a batch in data units, given a generator and the share of training done.
        group: The processes that share each batch.
    """

    objective: Objective[Any]
    batches: Batches
    transform: ToModelUnits
    settings: TrainSettings
    seed: int = 0
    augment: Augment | None = None
    group: SingleProcess | ProcessGroup = field(default_factory=SingleProcess)

    def first_state(self, energy: nn.Module) -> TrainState:
        """The state before step 1."""
        x, draws = self.batch(0, 0.0).x, generator(self.seed, "init", 0, self.group.rank)
        return fresh(energy, self.settings, lambda energy: self.objective.init(energy, x, draws))

    def __call__(self, state: TrainState, precision: Precision, num_steps: int) -> dict[str, Tensor]:
        """Update the state and return the metrics. Raises Diverged before the weights are touched."""
        batch = self.batch(state.step, state.step / num_steps)
        rate = self.settings.learning_rate * schedule(state.step, num_steps, self.settings) * state.guard.factor
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        objective = after_rollbacks(self.objective, state.guard.rollbacks)
        draws = generator(self.seed, "objective", state.step, self.group.rank)
        noise = objective.draw(state.objective, batch, draws, state.step / num_steps)
        with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss, after, metrics = objective.loss(state.energy, state.objective, batch, noise)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.group.average(state.energy)
        norm = nn.utils.clip_grad_norm_(state.energy.parameters(), self.settings.clip or math.inf)
        bad = self.group.any(finite({"data": batch.x, "loss": loss.detach(), "gradient": norm}))
        if bad:
            raise not_finite(bad, state.step + 1)
        state.optimizer.step()
        state.objective = after
        state.step += 1
        state.update_average(self.settings.ema)
        metrics = {"loss": loss.detach(), **metrics, "gradient_norm": norm, "learning_rate": torch.tensor(rate)}
        return self.group.mean(metrics)

    def batch(self, step: int, progress: float) -> Batch:
        """This rank's rows of a step, altered and in model units."""
        x, labels = self.batches.batch(step)
        if self.augment is not None:
            x = self.augment(x, generator(self.seed, "augment", step, self.group.rank), progress)
        return Batch(self.transform.forward(x), labels)

    def trial(self, state: TrainState, precision: Precision) -> Callable[[], object]:
        """A step on a copy of the state, so that timing leaves no trace."""
        trial = fresh(copy.deepcopy(state.energy), self.settings, lambda _: state.objective)
        trial.step = TRIAL_STEPS // 2  # schedules, as of a chain's length, are timed half-way
        return lambda: self(trial, precision, TRIAL_STEPS)


def run_steps(
    update: Update, state: TrainState, guard: Guard, num_steps: int, precision: Precision
) -> Iterator[dict[str, Tensor]]:
    """Update the state up to `num_steps`, guarded; the metrics after each step, none where it was skipped.

    Raises Diverged where the guard gives up.
    """
    guard.begin(state)
    while state.step < num_steps:
        start = time.perf_counter()
        try:
            metrics = update(state, precision, num_steps)
        except Diverged as error:
            metrics = {}
            guard.skip(state, error)
        else:
            guard.check(state, metrics)
        state.seconds += time.perf_counter() - start
        yield metrics


@contextmanager
def named_memory_errors(state: TrainState, settings: TrainSettings, kept: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemory, which names the batch size, where memory runs out: on a GPU, on the CPU or in Python.

    `kept()` is the part of the message on what is saved.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no more memory"])[0]
        kinds = (MemoryError, torch.OutOfMemoryError)
        if not isinstance(error, kinds) and not any(words in reason for words in NO_MEMORY):
            raise
        rows = settings.batch_size
        remedy = f"train.batch_size={rows // 2}" if rows > 1 else "a smaller energy"
        at = f"at step {state.step + 1} with a batch of {rows}"
        raise OutOfMemory(f"out of memory {at} ({reason}); start a run with {remedy}{kept()}") from error


def schedule(step: int, num_steps: int, settings: TrainSettings) -> float:
    """The learning rate's factor at a step: linear warm-up, then constant, linear or half a cosine down to zero."""
    warm = min(settings.warmup, max(num_steps // 10, 1))
    if step < warm:
        return (step + 1) / (warm + 1)
    left = 1 - (step - warm) / max(num_steps - warm, 1)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[settings.decay]
