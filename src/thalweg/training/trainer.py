"""Training in a run folder, which can be interrupted and resumed.

The loop over steps is `thalweg.training.step`'s. Around it the trainer makes the plan, writes checkpoints and the log,
and handles signals. Step n is a function of the state after n - 1, the seed and n. So an interrupted run resumes from
its newest valid checkpoint and ends with the same bits (same machine, versions and thread count). Of several processes
(`thalweg.training.distributed`) each runs this loop on its part of the batch, and rank 0 alone writes.
"""

import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.core import store, temporary
from thalweg.core.device import CPU, tf32
from thalweg.core.errors import Diverged, ThalwegError, UserError
from thalweg.data.loader import Loader
from thalweg.objective.base import Objective
from thalweg.training.distributed import ProcessGroup, SingleProcess, single_process
from thalweg.training.guard import Guard
from thalweg.training.metrics_log import MetricsLog, NoLog, Progress, Silent, log
from thalweg.training.plan import Plan, make_plan, num_threads
from thalweg.training.settings import TrainSettings
from thalweg.training.signals import Signals, Watch, look_every
from thalweg.training.state import FOLDER, TrainState
from thalweg.training.step import (
    Augment,
    ToModelUnits,
    UnreadableRows,
    Update,
    is_logged,
    named_memory_errors,
    run_steps,
)

Hook = Callable[[TrainState, Plan], None]
ANOTHER_FOLDER = ", in another folder, as a run keeps its settings"


class Interrupted(ThalwegError):
    """A signal has stopped the run; its state is saved. `signum` is the signal's number."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Trainer:
    """Trains an energy by an objective on a loader's batches, in a run folder.

    Args:
        energy: The energy.
        objective: The loss.
        loader: The rows of each step, with the group's rank and world size.
        transform: Data units to model units.
        settings: Of the training.
        folder: The run folder.
        seed: Seed of all draws.
        hooks: Called after every step with the state and the plan, which they must not change.
        progress: The progress bar.
        tensorboard: Whether TensorBoard events are written.
        augment: Alters a batch in data units, given a generator and the share of training done.
        group: The processes of the run, from `thalweg.training.distributed.joined`.
        device: Where the energy is trained, to which it is moved.
        signals: Looks at the samples after some steps; None: nobody does.
    """

    def __init__(
        self,
        *,
        energy: nn.Module,
        objective: Objective[Any],
        loader: Loader,
        transform: ToModelUnits,
        settings: TrainSettings,
        folder: Path,
        seed: int = 0,
        hooks: Sequence[Hook] = (),
        progress: Progress | None = None,
        tensorboard: bool = True,
        augment: Augment | None = None,
        group: SingleProcess | ProcessGroup | None = None,
        device: torch.device = CPU,
        signals: Signals | None = None,
    ):
        self.group = group = group or single_process()
        if (loader.rank, loader.world_size) != (group.rank, group.size):
            ranks = f"must be of rank {group.rank} in {group.size}; it is of {loader.rank} in {loader.world_size}"
            raise UserError(ranks, argument="loader")
        self.update = Update(objective, loader, transform, settings, seed, augment, group, device)
        self.settings, self.folder = settings, folder
        self.signals = signals
        self.hooks, self.progress, self.tensorboard = hooks, progress or Silent(), tensorboard
        self.state = self.update.first_state(energy)
        self.guard = Guard(settings.guard, objective, group)

    def fit(self) -> nn.Module:
        """Train from the newest checkpoint to the end of the plan; the averaged energy.

        Raises Interrupted after SIGINT or SIGTERM (state saved), Diverged where the guard gives up, OutOfMemory.
        """
        # from here on signals are caught: a stop during the timing acts after the first step
        kept = lambda: f"; {_described(self._last_good())}"  # noqa: E731
        memory = named_memory_errors(self.state, self.settings, kept)
        with memory, tf32(self.settings.tf32), _caught_signals() as caught:
            known = Plan.load(self.folder)
            if known is not None:
                known.require(self.group.size, self.folder)
                self._tell_device(known.device)
            self._restore()
            plan = self._plan(known)
            with num_threads(plan.threads):
                self._run(plan, caught)
        return self.state.average

    def save(self) -> None:
        """Write a checkpoint of the state as it is, so that a killed run goes on from these weights."""
        self.state.save(self.folder, self.settings.keep, self.group)

    def _tell_device(self, before: str) -> None:
        now = self.update.device.type
        if before != now:
            log.warning("the run began on %s and goes on on %s: other bits than on one device", before, now)

    def _run(self, plan: Plan, caught: list[int]) -> None:
        """The loop over steps."""
        metrics_log = self._metrics_log()
        self.progress.start(plan.num_steps, self.state.step)
        watch = self._watch(plan)
        try:
            for metrics in run_steps(self.update, self.state, self.guard, plan.num_steps, plan.precision, watch):
                self._after_step(plan, metrics_log, metrics, caught)
        except Diverged as error:
            good = self._last_good()
            text = f"{error}; {_described(good)}; {error.advice}{ANOTHER_FOLDER}"
            raise error.described(text, last_good=good) from error
        except UserError as error:  # rows that cannot be read: nothing of the state has changed
            raise self._saved_before(error) from error
        finally:
            metrics_log.close()
            self.progress.stop()

    def _saved_before(self, error: UserError) -> UserError:
        """The error of a step whose rows cannot be read, once all steps before it are saved."""
        step = self.state.step
        if not step or (self.group.size > 1 and not isinstance(error, UnreadableRows)):  # of one rank alone
            return error
        self._save()
        hint = "--resume --skip-bad goes on, with another image in its place" if error.skippable else error.hint
        text = f"{error.message} (all up to step {step} is saved in {self.folder})"
        return error.replace(message=text, hint=hint, skippable=False)

    def _watch(self, plan: Plan) -> Watch | None:
        if self.signals is None or not plan.look_every:
            return None
        self.group.on_rank0(partial(self.signals.begin, self.state.step, plan.precision))
        return Watch(self.signals, plan.look_every)

    def _after_step(
        self, plan: Plan, metrics_log: MetricsLog | NoLog, metrics: Mapping[str, Tensor | float], caught: list[int]
    ) -> None:
        """Report, save, stop where a signal came, call the hooks."""
        self._report(metrics_log, metrics, plan)
        signum, self.state.seconds = self.group.latest(caught[0] if caught else 0, self.state.seconds)
        last = self.state.step == plan.num_steps
        if last or signum or self.state.step % plan.checkpoint_every == 0:
            self._save()
        if signum and not last:
            raise Interrupted(f"stopped at step {self.state.step} of {plan.num_steps}, saved in {self.folder}", signum)
        for hook in self.hooks:  # after the save: a hook that fails loses no step
            hook(self.state, plan)

    def _restore(self) -> None:
        newest = self.group.broadcast(self._newest)
        if newest is not None:
            self.state.load(self.folder / FOLDER / newest, self.group)
        self.group.assert_equal("weights", self._weights)

    def _newest(self) -> str | None:
        """The name of the newest valid checkpoint; removes temporary files first."""
        temporary.clean(self.folder)
        parent = self.folder / FOLDER
        if not parent.is_dir():
            return None
        temporary.clean(parent)
        newest, warnings = store.newest_valid(parent)
        for warning in warnings:
            log.warning("%s", warning)
        return newest.name if newest else None

    def _weights(self) -> str:
        return hashlib.sha256(store.tensor_bytes(self.state.energy.state_dict())).hexdigest()

    def _plan(self, plan: Plan | None) -> Plan:
        """The stored plan, or a new one: all ranks take the trial steps, and the times of rank 0 count."""
        if plan is None:
            trial = lambda precision: self.update.trial(self.state, precision)  # noqa: E731
            try:
                made = make_plan(self.settings, trial, self.group.size, self.update.device.type, may_take_fewer=True)
            except Diverged as error:
                text = f"{error.what} is not finite in a trial step, before any training; {error.advice}"
                raise error.described(text, step=None) from error
            looks = lambda: look_every(self.signals, self.state, made.num_steps, made.step_seconds)  # noqa: E731
            every = self.group.broadcast(looks)
            plan = Plan.model_validate({**self.group.broadcast(made.model_dump), "look_every": every})
            self.group.on_rank0(lambda: plan.save(self.folder))
        return plan

    def _metrics_log(self) -> MetricsLog | NoLog:
        if self.group.rank:
            return NoLog()
        return MetricsLog(self.folder, self.state.step, tensorboard=self.tensorboard)

    def _report(self, metrics_log: MetricsLog | NoLog, metrics: Mapping[str, Tensor | float], plan: Plan) -> None:
        if metrics and is_logged(self.state.step, plan.num_steps, self.settings):
            self.progress.advance(self.state.step, metrics_log.write(self.state.step, self.state.seconds, {**metrics}))

    def _save(self) -> None:
        """Write a checkpoint, after a rollback where the state is not finite."""
        self.group.assert_equal("weights", self._weights)
        try:
            self.state.save(self.folder, self.settings.keep, self.group)
        except Diverged as error:
            self.guard.refuse(self.state, error)
            self.state.save(self.folder, self.settings.keep, self.group)

    def _last_good(self) -> Path | None:
        return max((self.folder / FOLDER).glob("step-*"), default=None)


def _described(checkpoint: Path | None) -> str:
    return f"last good checkpoint {checkpoint}" if checkpoint else "no checkpoint yet"


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM comes; a second one acts as usual. Outside the main thread: nothing."""
    caught: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {name: signal.getsignal(name) for name in names}

        def note(signum: int, _: object) -> None:
            caught.append(signum)
            signal.signal(signum, before[signal.Signals(signum)] or signal.SIG_DFL)

        for name in names:
            signal.signal(name, note)
    except ValueError:  # not the main thread
        yield caught
        return
    try:
        yield caught
    finally:
        for name in names:
            signal.signal(name, before[name] or signal.SIG_DFL)
