"""The one training loop.

Step n is a function of (state after n - 1, seed, n): the batch, the noise and every schedule follow from the step
number alone. So a run interrupted anywhere resumes from its newest whole checkpoint and ends with the same bits
(same machine, versions and thread count). A non-finite loss or gradient is met *before* the update; the guard
(`thalweg.train.guard`) decides what follows. With several processes (`thalweg.train.distributed`) each runs this loop
on its part of the batch, and the first alone writes.
"""

import copy
import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.core import store, temporary
from thalweg.core.errors import Diverged, OutOfMemory, ThalwegError, UserError
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.transform import Transform
from thalweg.objective.base import Batch, Objective, steadied
from thalweg.train.distributed import Alone, Ranks, alone
from thalweg.train.guard import Guard, finite
from thalweg.train.plan import Plan, make_plan
from thalweg.train.settings import TrainSettings
from thalweg.train.state import FOLDER, TrainState, fresh
from thalweg.train.track import Progress, Silent, Tracker, Untracked, log

Hook = Callable[[TrainState, Plan], None]
Augment = Callable[[Tensor, torch.Generator, float], Tensor]
TRIAL_STEPS = 1_000_000
ELSEWHERE = ", in another folder: a run keeps the settings that it began with"
# how a RuntimeError of the CPU, of C++ and of cuBLAS says it
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")


class Interrupted(ThalwegError):
    """The run was told to stop; its state is saved. `signum` is the signal's number."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Trainer:
    """Trains an energy by an objective on a loader's batches, in a run folder that survives being killed.

    `hooks` are called after every step with the state and the plan and must not change either. `ranks` are those that
    `thalweg.train.distributed.joined` gives; the loader's rank and world size must be theirs.
    """

    def __init__(
        self,
        *,
        energy: nn.Module,
        objective: Objective[Any],
        loader: Loader,
        transform: Transform,
        settings: TrainSettings,
        folder: Path,
        seed: int = 0,
        hooks: Sequence[Hook] = (),
        progress: Progress | None = None,
        tensorboard: bool = True,
        augment: Augment | None = None,
        ranks: Alone | Ranks | None = None,
    ):
        self.ranks = ranks = ranks or alone()
        if (loader.rank, loader.world_size) != (ranks.rank, ranks.size):
            raise UserError(f"loader: of rank {loader.rank} in {loader.world_size}: want {ranks.rank} in {ranks.size}")
        self.objective, self.loader, self.transform, self.augment = objective, loader, transform, augment
        self.settings, self.folder, self.seed = settings, folder, seed
        self.hooks, self.progress, self.tensorboard = hooks, progress or Silent(), tensorboard
        self.state = fresh(energy, settings, self._init_objective)
        self.guard = Guard(settings.guard, objective, ranks)

    def fit(self) -> nn.Module:
        """Train from where the folder stands to the end of the plan; the averaged energy.

        Raises Interrupted after SIGINT or SIGTERM (state saved), Diverged where the guard gives up, OutOfMemory.
        """
        # from here on a signal is kept: a stop during the timing acts after the first step
        with self._memory(), _caught_signals() as caught:
            known = self._known_plan()
            self._restore()
            plan = self._plan(known)
            tracker = self._tracker()
            self.progress.start(plan.num_steps, self.state.step)
            self.guard.begin(self.state)
            try:
                while self.state.step < plan.num_steps:
                    self._turn(plan, tracker, caught)
            except Diverged as error:
                raise Diverged(f"{error}{self._last_good()}; {error.advice}{ELSEWHERE}", error.advice) from error
            finally:
                tracker.close()
                self.progress.stop()
        return self.state.average

    def _turn(self, plan: Plan, tracker: Tracker | Untracked, caught: list[int]) -> None:
        """One step and all that follows it: report, save, stop, hooks."""
        start = time.perf_counter()
        try:
            metrics = self._advance(self.state, plan.precision, plan.num_steps)
        except Diverged as error:
            metrics = {}
            self.guard.skip(self.state, error)
        else:
            self.guard.check(self.state, metrics)
        self.state.seconds += time.perf_counter() - start
        self._report(tracker, metrics, plan)
        signum, self.state.seconds = self.ranks.latest(caught[0] if caught else 0, self.state.seconds)
        last = self.state.step == plan.num_steps
        if last or signum or self.state.step % plan.checkpoint_every == 0:
            self._save()
        if signum and not last:
            raise Interrupted(f"stopped at step {self.state.step} of {plan.num_steps}, saved in {self.folder}", signum)
        for hook in self.hooks:  # after the save: a hook that fails or dawdles costs no step
            hook(self.state, plan)

    def _advance(self, state: TrainState, precision: str, num_steps: int) -> dict[str, Tensor]:
        """One update. Raises Diverged before the weights are touched."""
        batch = self._batch(state.step, state.step / num_steps)
        rate = self.settings.learning_rate * schedule(state.step, num_steps, self.settings) * state.guard.factor
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        objective = steadied(self.objective, state.guard.rollbacks)
        draws = generator(self.seed, "objective", state.step, self.ranks.rank)
        noise = objective.draw(state.objective, batch, draws, state.step / num_steps)
        with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss, after, metrics = objective.loss(state.energy, state.objective, batch, noise)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average(state.energy)
        norm = nn.utils.clip_grad_norm_(state.energy.parameters(), self.settings.clip or math.inf)
        bad = self.ranks.any(finite({"data": batch.x, "loss": loss.detach(), "gradient": norm}))
        if bad:
            raise Diverged(f"{bad} is not finite at step {state.step + 1}")
        state.optimizer.step()
        state.objective = after
        state.step += 1
        state.update_average(self.settings.ema)
        metrics = {"loss": loss.detach(), **metrics, "gradient_norm": norm, "learning_rate": torch.tensor(rate)}
        return self.ranks.mean(metrics)

    def _batch(self, step: int, progress: float) -> Batch:
        x, labels = self.loader.batch(step)
        if self.augment is not None:
            x = self.augment(x, generator(self.seed, "augment", step, self.ranks.rank), progress)
        return Batch(self.transform.forward(x), labels)

    def _init_objective(self, energy: nn.Module) -> Any:
        return self.objective.init(energy, self._batch(0, 0.0).x, generator(self.seed, "init", 0, self.ranks.rank))

    def _restore(self) -> None:
        newest = self.ranks.told(self._newest)
        if newest is not None:
            self.state.load(self.folder / FOLDER / newest, self.ranks)
        self.ranks.agree("weights", self._weights)

    def _newest(self) -> str | None:
        """The name of the checkpoint to go on from, the folder tidied up."""
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

    def _known_plan(self) -> Plan | None:
        plan = Plan.load(self.folder)
        if plan is not None:
            plan.require(self.ranks.size, self.folder)
        return plan

    def _plan(self, plan: Plan | None) -> Plan:
        """The plan that there is, or a new one: all ranks take the trial steps, and the first one's times count."""
        if plan is None:
            try:
                made = make_plan(self.settings, self._trial, self.ranks.size)
            except Diverged as error:
                what = str(error).partition(" is not finite")[0]
                raise Diverged(f"{what} is not finite in a trial step, before any training; {error.advice}") from error
            plan = Plan.model_validate(self.ranks.told(made.model_dump))
            self.ranks.first(lambda: plan.save(self.folder))
        if plan.threads != torch.get_num_threads():
            torch.set_num_threads(plan.threads)  # sums are split by thread: the bits depend on their number
        return plan

    def _trial(self, precision: str) -> Callable[[], object]:
        """A step on a copy, so that timing leaves no trace."""
        energy = copy.deepcopy(self.state.energy)
        trial = fresh(energy, self.settings, lambda _: self.state.objective)
        trial.step = TRIAL_STEPS // 2  # what grows in training, as a chain's length does, is timed half-way
        return lambda: self._advance(trial, precision, TRIAL_STEPS)

    def _tracker(self) -> Tracker | Untracked:
        if self.ranks.rank:
            return Untracked()
        return Tracker(self.folder, self.state.step, tensorboard=self.tensorboard)

    def _report(self, tracker: Tracker | Untracked, metrics: dict[str, Tensor], plan: Plan) -> None:
        if metrics and (self.state.step % self.settings.log_every == 0 or self.state.step in (1, plan.num_steps)):
            self.progress.advance(self.state.step, tracker.write(self.state.step, self.state.seconds, {**metrics}))

    def _save(self) -> None:
        """Write a checkpoint; what is not finite never gets into one."""
        self.ranks.agree("weights", self._weights)
        try:
            self.state.save(self.folder, self.settings.keep, self.ranks)
        except Diverged as error:
            self.guard.refuse(self.state, error)
            self.state.save(self.folder, self.settings.keep, self.ranks)

    def _last_good(self) -> str:
        good = sorted((self.folder / FOLDER).glob("step-*"))
        where = f"last good checkpoint {good[-1]}" if good else "no checkpoint yet"
        return f"; {where}"

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Name the batch size where memory runs out: on a GPU, on the CPU or in Python."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["no more memory"])[0]
            kinds = (MemoryError, torch.OutOfMemoryError)
            if not isinstance(error, kinds) and not any(words in reason for words in NO_MEMORY):
                raise
            rows = self.settings.batch_size
            mend = f"train.batch_size={rows // 2}" if rows > 1 else "a smaller energy"
            at = f"at step {self.state.step + 1} with a batch of {rows}"
            raise OutOfMemory(f"out of memory {at} ({reason}); start a run with {mend}{self._last_good()}") from error


def schedule(step: int, num_steps: int, settings: TrainSettings) -> float:
    """The learning rate's factor at a step: linear warm-up, then constant, linear or half a cosine down to zero."""
    warm = min(settings.warmup, max(num_steps // 10, 1))
    if step < warm:
        return (step + 1) / (warm + 1)
    left = 1 - (step - warm) / max(num_steps - warm, 1)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[settings.decay]


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
