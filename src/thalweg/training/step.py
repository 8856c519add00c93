"""One step of training and the loop over steps, in a run folder or in memory.

Step n is a function of (state after n - 1, seed, n): batch, noise and learning rate depend on the step number alone. A
non-finite loss or gradient is found before the update; the guard (`thalweg.training.guard`) decides what follows.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from thalweg.core.device import CPU, autocast, place, synchronise
from thalweg.core.errors import Diverged, OutOfMemory, UserError
from thalweg.core.rng import generator, global_draws
from thalweg.data.loader import Prefetcher
from thalweg.objective.base import Batch, Compilable, Objective, rows_for
from thalweg.training.distributed import ProcessGroup, SingleProcess
from thalweg.training.guard import Guard, finite, not_finite, variant_of
from thalweg.training.notes import cause_of, unless
from thalweg.training.plan import Precision
from thalweg.training.remedy import heed
from thalweg.training.settings import TrainSettings
from thalweg.training.signals import Signals, Verdict, Watch
from thalweg.training.state import TrainState, fresh

Augment = Callable[[Tensor, torch.Generator, float], Tensor]
MASKED = "masked"
TRIAL_STEPS = 1_000_000
# in the texts of RuntimeErrors of the CPU, of C++ and of cuBLAS, which have no type of their own
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")


class Batches(Protocol):
    """The data of a training: rows x (B, *) in data units of any step >= 0, and their labels (B,) or None."""

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class StoredBatches(Protocol):
    """Batches of rows that may not be in memory (`is_stored`), for which a step may have to wait."""

    is_stored: bool


class ToModelUnits(Protocol):
    """The part of a transform that a training uses."""

    def forward(self, x: Tensor) -> Tensor: ...


class UnreadableRows(UserError):
    """The rows of a step cannot be read, by one rank of several; all raise it in the same step."""


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
        device: Where all of it is computed. Except on the CPU, steps that are not finite are masked, not raised.
    """

    objective: Objective[Any]
    batches: Batches
    transform: ToModelUnits
    settings: TrainSettings
    seed: int = 0
    augment: Augment | None = None
    group: SingleProcess | ProcessGroup = field(default_factory=SingleProcess)
    device: torch.device = CPU

    def __post_init__(self):
        self._compiled: dict[tuple[int, int], Any] = {}  # the loss, by the numbers of rollbacks and collapses
        compiles = isinstance(self.objective, Compilable) and self.objective.compiles
        if self.settings.compile and not compiles:
            text = f"must be false, as the loss of {type(self.objective).__name__} cannot be compiled"
            raise UserError(text, argument="train.compile", value=True)
        self.is_stored = isinstance(self.batches, StoredBatches) and self.batches.is_stored
        self.waited, self.worked = 0.0, 0.0  # seconds: for the rows of steps, and of the steps in all
        self.masked = self.device.type != "cpu"
        if self.masked:
            self.batches = Prefetcher(self.batches, self.device)

    def first_state(self, energy: nn.Module) -> TrainState:
        """The state before step 1, with the energy moved to the device."""
        energy = place(energy, self.device)
        x, draws = self._first_rows(), self.generator("init", 0)
        return fresh(energy, self.settings, lambda energy: self.objective.init(energy, x, draws))

    def _first_rows(self) -> Tensor:
        """The rows that the objective's state is made from: of the first batches, as many as it asks for."""
        first = self.batch(0, 0.0).x
        more = range(1, math.ceil(rows_for(self.objective) / len(first)))
        return torch.cat([first, *(self.batch(step, 0.0).x for step in more)])

    def __call__(self, state: TrainState, precision: Precision, num_steps: int) -> dict[str, Tensor]:
        """Update the state and return the metrics. Raises Diverged before the weights are touched.

        On a device the step is masked instead, and nothing is read: `MASKED` among the metrics is the cause, or 0.
        """
        batch = self.batch(state.step, state.step / num_steps)
        rate = self.settings.learning_rate * schedule(state.step, num_steps, self.settings) * state.guard.factor
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        objective = variant_of(self.objective, state.guard)
        draws = self.generator("objective", state.step)
        noise = objective.draw(state.objective, batch, draws, state.step / num_steps)
        modules = global_draws(self.generator("modules", state.step))  # dropout in a network of the user's
        with autocast(batch.x.device, precision == "bf16"), modules:
            loss, after, metrics = self._loss(objective, state)(state.energy, state.objective, batch, noise)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.group.average(state.energy)
        norm = nn.utils.clip_grad_norm_(state.energy.parameters(), self.settings.clip or math.inf)
        rate = torch.full((), rate, device=loss.device)
        metrics = {"loss": loss.detach(), **metrics, "gradient_norm": norm, "learning_rate": rate}
        if self.masked:
            cause = self.group.worst(cause_of(batch.x, loss.detach(), norm))
            self._apply(state, after, cause > 0)
            return {**self.group.mean(metrics), MASKED: cause}
        bad = self.group.any(finite({"data": batch.x, "loss": loss.detach(), "gradient": norm}))
        if bad:
            raise not_finite(bad, state.step + 1)
        self._apply(state, after)
        return self.group.mean(metrics)

    def _apply(self, state: TrainState, after: Any, bad: Tensor | None = None) -> None:
        """Take the step; `bad` () on the device: only the step's number where it is true."""
        if bad is None:
            state.optimizer.step()
            state.objective = after
        else:
            state.optimizer.masked_step(bad.float())
            state.objective = unless(bad, state.objective, after)
        # Torch keeps bfloat16 copies of weights until the outermost autocast block ends, one of the caller's maybe, and
        # would go on with those from before the step.
        torch.clear_autocast_cache()
        state.step += 1
        state.update_average(self.settings.ema, bad)

    def _loss(self, objective: Objective[Any], state: TrainState) -> Callable[..., Any]:
        """The objective's loss, compiled where the settings say so."""
        if not self.settings.compile:
            return objective.loss
        times = (state.guard.rollbacks, state.guard.collapses)
        if times not in self._compiled:
            self._compiled[times] = torch.compile(objective.loss)
        return self._compiled[times]

    def generator(self, stream: str, step: int) -> torch.Generator:
        """This rank's draws of a step, on the device."""
        return generator(self.seed, stream, step, self.group.rank, device=self.device)

    def batch(self, step: int, progress: float) -> Batch:
        """This rank's rows of a step, altered and in model units."""
        start = time.perf_counter()
        x, labels = self._rows(step)
        self.waited += time.perf_counter() - start
        if self.augment is not None:
            x = self.augment(x, self.generator("augment", step), progress)
        return Batch(self.transform.forward(x), labels)

    def _rows(self, step: int) -> tuple[Tensor, Tensor | None]:
        """This rank's rows of a step, in data units; UnreadableRows on all ranks where one cannot read its own."""
        if not self.is_stored or self.group.size == 1:  # rows in memory are there
            return self.batches.batch(step)
        rows, complaint = None, None
        try:
            rows = self.batches.batch(step)
        except UserError as error:
            complaint = json.dumps([error.message, error.argument, error.hint, error.skippable])
        complaint = self.group.any(complaint)
        if complaint is not None:
            message, argument, hint, skippable = json.loads(complaint)
            raise UnreadableRows(message, argument=argument, hint=hint).replace(skippable=skippable)
        assert rows is not None  # as no rank complained
        return rows

    @property
    def data_wait(self) -> float | None:
        """The share of the steps' time that went by until their rows were there; None for rows in memory."""
        return self.waited / max(self.worked, 1e-9) if self.is_stored else None

    def trial(self, state: TrainState, precision: Precision) -> Callable[[], object]:
        """A step on a copy of the state, so that timing leaves no trace."""
        trial = fresh(copy.deepcopy(state.energy), self.settings, lambda _: state.objective)
        trial.step = TRIAL_STEPS // 2  # schedules, as of a chain's length, are timed half-way

        def step() -> None:
            self(trial, precision, TRIAL_STEPS)
            synchronise(self.device)

        return step


def run_steps(
    update: Update, state: TrainState, guard: Guard, num_steps: int, precision: Precision, watch: Watch | None = None
) -> Iterator[Mapping[str, Tensor | float]]:
    """Update the state up to `num_steps`, guarded; the metrics after each step, none where it was skipped.

    On a device there are metrics, numbers, where a step is logged only. Raises Diverged where the guard gives up.
    `watch`: who looks at the samples after some of the steps.
    """
    guard.begin(state)
    if state.guard.notes is not None and not update.masked:  # of a run that goes on on the CPU
        guard.look(state, {})
    update.waited = update.worked = 0.0  # without those of trial steps
    while state.step < num_steps:
        start = time.perf_counter()
        metrics = (_noted if update.masked else _checked)(update, state, guard, num_steps, precision)
        if watch is not None and watch.due(state.step):
            _look(watch.signals, state, guard)
        spent = time.perf_counter() - start
        state.seconds, update.worked = state.seconds + spent, update.worked + spent
        wait = update.data_wait
        yield metrics if wait is None or not metrics else {**metrics, "data_wait": wait}


def _look(signals: Signals, state: TrainState, guard: Guard) -> None:
    """One look at the samples, by rank 0, and what all ranks do about it."""
    found: list[Verdict] = []
    guard.group.on_rank0(lambda: found.append(Verdict(*signals.look(state))))
    alarm, calm, sentence = guard.group.broadcast(lambda: found[0][:3])
    action: str | None = "stopped"
    try:
        action = heed(guard, state, Verdict(alarm, calm, sentence), signals.policy)
    finally:
        for verdict in found:
            state.monitor = signals.settle(verdict.memory, action)


def is_logged(step: int, num_steps: int, settings: TrainSettings) -> bool:
    """Whether the metrics after a step are logged."""
    return step % settings.log_every == 0 or step in (1, num_steps)


def _checked(
    update: Update, state: TrainState, guard: Guard, num_steps: int, precision: Precision
) -> Mapping[str, Tensor | float]:
    """A step that is checked before the update and after it."""
    try:
        metrics = update(state, precision, num_steps)
    except Diverged as error:
        guard.skip(state, error)
        return {}
    guard.check(state, metrics)
    return metrics


def _noted(
    update: Update, state: TrainState, guard: Guard, num_steps: int, precision: Precision
) -> Mapping[str, Tensor | float]:
    """A step on a device, noted there; where it is logged the notes are read, and the metrics."""
    metrics = update(state, precision, num_steps)
    guard.note(state, metrics.pop(MASKED), metrics)
    return guard.look(state, metrics) if is_logged(state.step, num_steps, update.settings) else {}


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
