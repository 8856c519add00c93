"""Training without a folder: for applications that train an energy of their own.

The update, the loop and the guard are the trainer's (`thalweg.training.step`), so the same settings give the same
weights. There is no checkpoint, no log, no preview and no signal handler, and no process group: the environment of a
distributed job is not read, and each of its processes may train on its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.bundle.bundle import Bundle
from thalweg.core import config as specs
from thalweg.core.device import CPU, find_device, tf32
from thalweg.core.errors import Diverged, UserError
from thalweg.core.state_tree import flatten
from thalweg.data.catalog import Dataset
from thalweg.data.loader import Loader
from thalweg.data.stored_rows import StoredRows
from thalweg.data.transform import Identity
from thalweg.objective.base import Objective, start_law_of
from thalweg.run.augmentation import resolved
from thalweg.run.checks import build_parts, check_parts, fit_to_data
from thalweg.run.finish import calibrated, training_facts
from thalweg.run.fit import prepared
from thalweg.run.monitoring import run_monitor
from thalweg.run.request import Request
from thalweg.run.run_config import new_config
from thalweg.training.guard import Guard, finite, not_finite
from thalweg.training.metrics_log import Progress, Silent
from thalweg.training.plan import Precision, make_plan
from thalweg.training.settings import RunSettings, TrainSettings
from thalweg.training.signals import Signals, Watch, look_every, may_look
from thalweg.training.state import TrainState
from thalweg.training.step import Augment, Batches, ToModelUnits, Update, named_memory_errors, run_steps

FOR_FOLDERS = {"checkpoint_every", "keep", "log_every"}


def optimise(
    energy: nn.Module,
    objective: Objective[Any],
    x: Tensor | StoredRows | Batches,
    settings: TrainSettings,
    *,
    labels: Tensor | None = None,
    transform: ToModelUnits | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    after_step: Callable[[TrainState], bool | None] | None = None,
) -> nn.Module:
    """Train an energy by an objective; the average of its weights, as a module of its own.

    The global random generator is neither read nor seeded: weights are the caller's, draws follow from `seed`.

    Args:
        energy: The network, trained in place: afterwards it has the last weights.
        objective: The loss.
        x: Training rows (N, *) in data units, shuffled anew each epoch. Or anything with `batch(step)`, which gives
            the rows and labels of a step counted from 0: for batches of another kind.
        settings: Steps or minutes, learning rate, average, precision, guard. With `minutes`, or the precision "auto",
            some steps are timed first on a copy.
        labels: Whole numbers (N,), where `x` is a tensor and the objective reads them.
        transform: Data units to model units. None: they are the same.
        augment: Alters a batch in data units, given a generator and the share of training done.
        seed: Seed of all draws.
        device: Where it is trained. The energy is moved there.
        after_step: Called after each step with the state, which it may read and copy but must not change. `True` ends
            the training: early stopping keeps the best weights itself.

    Raises:
        Diverged: A loss, gradient or health signal went wrong more often than `settings.guard` forgives.
        OutOfMemory: Memory ran out; the message names the batch size.
    """
    if isinstance(x, Tensor | StoredRows):
        batches: Batches = Loader(x, labels, batch_size=settings.batch_size, seed=seed)
    elif labels is not None:
        raise UserError("is for rows, and x gives batches", argument="labels", hint="let `batch` return them")
    else:
        batches = x
    update = Update(objective, batches, transform or Identity(), settings, seed, augment, device=device)
    return _trained(update, energy, after_step=after_step)[0].average


def train_in_memory(run: RunSettings, data: Dataset, *, device: torch.device = CPU) -> nn.Module:
    """The averaged energy of a run, built, checked and trained as `run.fit` does, without its folder."""
    run, _ = resolved(run, data)
    parts = build_parts(run, data)
    check_parts(parts, run, data)
    transform = fit_to_data(parts, data)
    return optimise(
        parts.energy,
        parts.objective,
        data.train,
        run.train,
        labels=data.train_labels,
        transform=transform,
        augment=parts.augment,
        seed=run.seed,
        device=device,
    )


def fit_in_memory(request: Request, *, progress: Progress | None = None) -> Bundle:
    """Train what a request describes; the calibrated bundle. Nothing is written, and a signal ends it as usual."""
    request, run, data, parts = prepared(request)
    config = new_config(request, run, data, parts)
    transform = fit_to_data(parts, data)
    config["run"]["transform"] = specs.plain(transform.to_dict())
    how = {"batch_size": run.train.batch_size, "seed": run.seed, "workers": run.data.workers}
    loader = Loader(data.train, data.train_labels, **how)
    device = find_device(request.device)
    update = Update(parts.objective, loader, transform, run.train, run.seed, parts.augment, device=device)
    signals = run_monitor(run, data, parts, transform, None)
    state, precision = _trained(update, parts.energy, progress=progress, signals=signals)
    config |= {"precision": precision, "training": training_facts(state, update.data_wait)}
    law = start_law_of(parts.objective, state.objective, data.energy_shape)
    return calibrated(config, state.average, data, parts.sampler, Path("the bundle in memory"), law)


def _trained(
    update: Update,
    energy: nn.Module,
    *,
    progress: Progress | None = None,
    after_step: Callable[[TrainState], bool | None] | None = None,
    signals: Signals | None = None,
) -> tuple[TrainState, Precision]:
    """The state after the last step, and the precision of the steps."""
    settings, bar = update.settings, progress or Silent()
    for name, value in settings.model_dump(include=FOR_FOLDERS).items():
        default = TrainSettings.model_fields[name].default
        if value != default:
            text = f"must be {default}, as there is no run folder for it to act on"
            raise UserError(text, argument=name, value=value, hint="leave it out")
    state, guard = update.first_state(energy), Guard(update.settings.guard, update.objective)
    with named_memory_errors(state, settings, kept=str), tf32(settings.tf32):
        num_steps, precision, watch = _budget(update, state, signals)
        bar.start(num_steps, 0)
        try:
            for metrics in run_steps(update, state, guard, num_steps, precision, watch):
                if progress is not None and metrics and state.step % settings.log_every == 0:
                    bar.advance(state.step, {name: float(value) for name, value in metrics.items()})
                if after_step is not None and after_step(state):
                    break
            if state.guard.notes is not None:  # ended between two readings
                guard.look(state, {})
            bad = finite(flatten(state.core())[0])
            if bad:  # the last update has no next step, whose loss would tell
                guard.refuse(state, not_finite(bad, state.step))
        except Diverged as error:
            raise error.described(f"{error}; {error.advice}") from error
        finally:
            bar.stop()
    return state, precision


def _budget(update: Update, state: TrainState, signals: Signals | None) -> tuple[int, Precision, Watch | None]:
    """The number of steps, the precision and the watch, by timing only where the settings leave them open."""
    settings = update.settings
    steps = settings.steps
    if steps is not None and settings.precision != "auto" and (signals is None or not may_look(signals, steps)):
        return steps, settings.precision, None
    try:
        plan = make_plan(settings, lambda precision: update.trial(state, precision))
    except Diverged as error:
        text = f"{error.what} is not finite in a trial step, before any training"
        raise error.described(text, step=None) from error
    if signals is None:
        return plan.num_steps, plan.precision, None
    signals.begin(0, plan.precision)
    every = look_every(signals, state, plan.num_steps, plan.step_seconds)
    return plan.num_steps, plan.precision, Watch(signals, every)
