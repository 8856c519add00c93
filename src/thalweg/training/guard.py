"""The guard: detects instability of a training, and rolls back, warns or stops.

Loss and gradient are checked for values that are not finite; such a step is skipped before the update. The health
signals that an objective reports (`thalweg.objective.contrastive.health`) are compared with limits. After several bad
steps in a row the policy decides. "rollback" restores weights, optimiser, average and chains of the last good snapshot,
lowers the learning rate, and takes the objective's variant after a rollback
(`thalweg.objective.base.HasAfterRollback`). "warn" logs a warning, "stop" ends the run. A rollback does not change the
step number, which addresses the random draws, so the same draws do not come again.

On a device that the host does not wait for, steps are masked and noted there (`thalweg.training.notes`). The guard
reads the notes at each step that is logged, and acts then: `note` takes the place of `skip` and `check`, `look` reads.

A snapshot counts as good only once a later one was taken without a signal beyond its limits. Where trouble comes back
soon after a rollback, the next one goes to the first snapshot. Snapshots are part of the checkpoint, so that a resumed
run has the same bits.
"""

import copy
import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from thalweg.core.device import send
from thalweg.core.errors import Diverged
from thalweg.core.state_tree import flatten
from thalweg.objective.base import Objective, after_collapses, after_rollbacks, changes
from thalweg.training.distributed import ProcessGroup, SingleProcess
from thalweg.training.notes import CAUSES, Bounds, Notes, add, read

log = logging.getLogger("thalweg")
T = TypeVar("T")
QUIET = 200  # steps without a repetition of a warning
SOON = 20  # snapshots: where trouble comes back within so many, the good one was bad already


class GuardSettings(BaseModel):
    """When the guard acts and how. A limit of null is not checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    policy: Literal["rollback", "warn", "stop"] = "rollback"
    every: int = Field(50, ge=1, description="steps between snapshots")
    patience: int = Field(5, ge=1, description="bad steps in a row before the guard acts")
    max_rollbacks: int = Field(3, ge=0)
    slow: float = Field(0.3, gt=0, le=1, description="factor on the learning rate at a rollback")
    max_gap: float | None = Field(100.0, gt=0, description="largest |mean E(fake) - mean E(real)|")
    max_diverged: float | None = Field(0.5, ge=0, lt=1, description="largest share of chains that end non-finite")
    max_clamped: float | None = Field(0.98, gt=0, le=1, description="largest share of coordinates at the clamp's walls")
    min_slope: float | None = Field(1e-7, gt=0, description="least norm of the energy's gradient along the chain")
    min_spread: float | None = Field(0.02, gt=0, description="least deviation of the chains over that of the data")
    min_lineages: float | None = Field(0.5, gt=0, le=1, description="least share of distinct chains in a batch")


class Limit(NamedTuple):
    """A bound on a health signal, and what to do beyond it."""

    signal: str
    setting: str  # of `GuardSettings`, which has the bound
    calm: float  # the bound for a snapshot to be taken, as a factor
    meaning: str
    way: Literal["raise", "lower"]
    remedy: str  # the setting of the run to raise or lower

    @property
    def advice(self) -> str:
        """The remedy in words."""
        return f"{self.way} {self.remedy}"


LIMITS = (
    Limit("gap", "max_gap", 0.5, "the energies of data and samples drift apart", "raise", "objective.energy_penalty"),
    Limit("diverged", "max_diverged", 0.5, "chains leave the finite range", "lower", "the sampler's step_size"),
    Limit("clamped", "max_clamped", 1.0, "chains are stuck at the clamp", "lower", "the sampler's step_size"),
    Limit(
        "chain_grad_norm", "min_slope", 2.0, "the slope along the chain vanishes", "lower", "objective.energy_penalty"
    ),
    Limit("spread", "min_spread", 2.0, "the chains have collapsed onto one point", "raise", "objective.reinit"),
    Limit("lineages", "min_lineages", 1.5, "chains are copies of each other", "raise", "the sampler's temperature"),
)


class GuardState(NamedTuple):
    """The guard's memory, part of each checkpoint."""

    origin: Any = None  # the first snapshot
    good: Any = None  # the last good one
    candidate: Any = None  # a later one, good once another has been taken
    factor: float = 1.0  # on the learning rate
    rollbacks: int = 0
    acted: int = 0  # the step of the last rollback
    strikes: int = 0  # steps in a row beyond a limit
    skips: int = 0  # steps in a row that were not finite
    notes: Notes | None = None  # of steps on a device since the last reading, with the two counts above
    varied: Any = None  # the snapshot at the last look of a monitor that found nothing suspicious
    collapses: int = 0  # losses of variety that the objective's variant was taken for


class Guarded(Protocol):
    """The state that a guard watches, `training.state.TrainState`."""

    step: int
    guard: GuardState

    @property
    def device(self) -> torch.device: ...

    def core(self) -> dict[str, Any]: ...

    def restore(self, tree: dict[str, Any], /) -> None: ...


class Guard:
    """Checks the steps of one training, whose state has the guard's memory in its field `guard`.

    Args:
        settings: Policy and limits.
        objective: The objective at the start of the run; steps are those of `variant_of(objective, state.guard)`.
        group: The processes of the run.
    """

    def __init__(
        self,
        settings: GuardSettings,
        objective: Objective[Any] | None = None,
        group: SingleProcess | ProcessGroup | None = None,
    ):
        self.settings, self.objective, self.group = settings, objective, group or SingleProcess()
        self._bounds: tuple[tuple[str, ...], Bounds | None] | None = None  # on the device, of metrics of these names

    def begin(self, state: Guarded) -> None:
        """Take the first snapshot, to which a rollback can always go."""
        if self.settings.policy == "rollback" and state.guard.good is None:
            first = snapshot_of(state)
            state.guard = state.guard._replace(origin=first, good=first)

    def skip(self, state: Guarded, error: Diverged) -> None:
        """Count a step as skipped whose loss or gradient is not finite; raises `error` under "stop"."""
        if self.settings.policy == "stop":
            raise error
        state.step += 1
        skips = state.guard.skips + 1
        state.guard = state.guard._replace(skips=skips)
        if skips == 1:
            log.warning("%s; the step was skipped before it touched the weights", error)
        if skips >= self.settings.patience:
            self._act(state, error.described(f"{error}, as in the {skips - 1} steps before") if skips > 1 else error)

    def check(self, state: Guarded, metrics: dict[str, Tensor]) -> None:
        """Check the metrics after a step. Diverged under "stop", or after the last rollback."""
        past = self._beyond(metrics, calm=False)
        if past is None:
            state.guard = state.guard._replace(strikes=min(state.guard.strikes + 1, 0), skips=0)
            if self.settings.policy == "rollback" and state.step % self.settings.every == 0:
                self._remember(state, metrics)
            return
        state.guard = state.guard._replace(strikes=state.guard.strikes + 1, skips=0)
        if state.guard.strikes >= self.settings.patience:
            self._act_on_limit(state, *past, state.step)

    def note(self, state: Guarded, cause: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Note a step on the device that was masked for a cause, 0 for none; nothing is read."""
        guard = state.guard
        notes = guard.notes or Notes.begin(guard.skips, guard.strikes, state.device)
        if self._bounds is None or self._bounds[0] != tuple(metrics):
            self._bounds = (tuple(metrics), _bounds(self.settings, metrics, state.device))
        notes = add(notes, cause, metrics, self._bounds[1], state.step, self.settings.patience)
        state.guard = guard._replace(notes=notes)

    def look(self, state: Guarded, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        """Read the notes and the metrics of the last step by one transfer, and act as `skip` and `check` do.

        Returns the metrics, none where the step was masked. Where a snapshot is due, whether all is finite is read too.
        """
        due = self._due(state)
        sound = [all_finite(flatten(state.core())[0], state.device)] if due else []
        assert state.guard.notes is not None
        numbers = read([*sound, *state.guard.notes, *metrics.values()])
        unsound = "not finite" if due and not numbers[0] else None
        numbers = numbers[1:] if due else numbers
        told = dict(zip(Notes._fields, numbers, strict=False))
        figures = dict(zip(metrics, numbers[len(told) :], strict=True)) if told["latest"] == 0 else {}
        skips, strikes = int(told["skips"]), int(told["strikes"])
        state.guard = state.guard._replace(skips=skips, strikes=strikes, notes=None)
        if told["first"]:
            self._tell_masked(told)
        if told["end"]:
            self._act_on(state, told)
        elif due and figures and self._beyond(figures, calm=True) is None and not self.group.any(unsound):
            self._take(state)
        return figures

    def _tell_masked(self, told: dict[str, float]) -> None:
        error, number = not_finite(CAUSES[int(told["cause"]) - 1], int(told["first"])), int(told["masked"])
        if self.settings.policy == "stop":
            raise error
        steps = "the step was" if number == 1 else f"{number} steps since then were"
        log.warning("%s; %s skipped before it touched the weights", error, steps)

    def _act_on(self, state: Guarded, told: dict[str, float]) -> None:
        """Act on bad steps in a row, as many as the patience."""
        step, reason, value = int(told["end"]), int(told["reason"]), told["value"]
        if reason > 0:
            error, before = not_finite(CAUSES[reason - 1], step), self.settings.patience - 1
            self._act(state, error.described(f"{error}, as in the {before} steps before") if before else error)
        else:
            self._act_on_limit(state, LIMITS[-reason - 1], math.nan if value < 0 else value, step)

    def _due(self, state: Guarded) -> bool:
        """Whether a multiple of `every` has passed since the last snapshot or rollback."""
        guard, every = state.guard, self.settings.every
        last = guard.candidate or guard.good
        before = max(last["step"] if last else 0, guard.acted)
        return self.settings.policy == "rollback" and state.step // every > before // every

    def refuse(self, state: Guarded, error: Diverged) -> None:
        """Roll back before a checkpoint that would not be finite, or raise `error` under another policy."""
        if self.settings.policy != "rollback":
            raise error
        self._act(state, error)

    def _act_on_limit(self, state: Guarded, limit: Limit, value: float, step: int) -> None:
        bound = getattr(self.settings, limit.setting)
        text = f"{limit.meaning} ({limit.signal} {value:.3g}, limit {bound:g}) at step {step}"
        self._act(state, Diverged(text, what=limit.signal, step=step, advice=limit.advice), limit)

    def _act(self, state: Guarded, trouble: Diverged, limit: Limit | None = None) -> None:
        guard, settings = state.guard, self.settings
        advice = f"; {limit.advice} if this comes back" if limit else ""
        if settings.policy == "stop":
            raise trouble
        if settings.policy == "warn":
            log.warning("%s; the run goes on as the policy is to warn%s", trouble, advice)
            state.guard = guard._replace(strikes=-QUIET, skips=-QUIET)
            return
        if guard.rollbacks >= settings.max_rollbacks:
            raise trouble.described(f"{trouble}, after {guard.rollbacks} rollbacks")
        again = guard.rollbacks > 0 and state.step - guard.acted <= SOON * settings.every
        changed, done = self.go_back(state, guard.origin if again else guard.good)
        if limit and limit.remedy in changed:  # done already
            advice = ""
        log.warning(
            "%s; %s and %s (rollback %d of %d)%s",
            trouble, ", ".join(done[:-1]), done[-1], state.guard.rollbacks, settings.max_rollbacks, advice,
        )  # fmt: skip

    def go_back(self, state: Guarded, snapshot: dict[str, Any]) -> tuple[set[str], list[str]]:
        """Roll back to a snapshot, at a lower learning rate: the settings that change with it, and what was done."""
        guard = state.guard
        state.restore(snapshot)
        state.guard = guard._replace(
            good=snapshot,
            candidate=None,
            factor=guard.factor * self.settings.slow,
            rollbacks=guard.rollbacks + 1,
            acted=state.step,
            strikes=0,
            skips=0,
            notes=None,
        )
        done = [
            f"went back to the weights, the optimiser and the chains of step {snapshot['step']}",
            f"lowered the learning rate to {state.guard.factor:.3g} of its schedule",
        ]
        changed = changes(variant_of(self.objective, guard), variant_of(self.objective, state.guard))
        return {f"objective.{name}" for name in changed}, done + settings_set(changed)

    def _remember(self, state: Guarded, metrics: dict[str, Tensor]) -> None:
        """Take a snapshot in good health, which makes the one before good; all of it must be finite.

        The signals are of the chains that a step visited; a rollback must not restore other chains that are not finite.
        """
        if self._beyond(metrics, calm=True) is None and not self.group.any(finite(flatten(state.core())[0])):
            self._take(state)

    def _take(self, state: Guarded) -> None:
        good = state.guard.candidate or state.guard.good
        state.guard = state.guard._replace(good=good, candidate=snapshot_of(state))

    def _beyond(self, metrics: Mapping[str, Tensor | float], *, calm: bool) -> tuple[Limit, float] | None:
        """The first signal beyond its limit, with its value; a value that is not finite is beyond."""
        for limit in LIMITS:
            bound, value = getattr(self.settings, limit.setting), metrics.get(limit.signal)
            if bound is None or value is None:
                continue
            bound, number = bound * (limit.calm if calm else 1.0), abs(float(value))
            inside = number >= bound if limit.setting.startswith("min") else number <= bound
            if not (math.isfinite(number) and inside):
                return limit, number
        return None


def variant_of(objective: T, guard: GuardState) -> T:
    """The objective of the next step, after the rollbacks and the losses of variety so far."""
    return after_collapses(after_rollbacks(objective, guard.rollbacks), guard.collapses)


def settings_set(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """What was done to the objective, in words."""
    return [f"set objective.{name} from {old} to {new}" for name, (old, new) in changed.items()]


def not_finite(what: str, step: int) -> Diverged:
    """The error of a tensor with a value that is not finite at a step."""
    return Diverged(f"{what} is not finite at step {step}", what=what, step=step)


def all_finite(tensors: dict[str, Tensor], device: torch.device) -> Tensor:
    """Whether all is finite, () on the device; tensors elsewhere are read by the host."""
    here = [value.isfinite().all() for value in tensors.values() if value.device == device]
    elsewhere = all(bool(value.isfinite().all()) for value in tensors.values() if value.device != device)
    return torch.stack(here).all() & elsewhere


def _bounds(settings: GuardSettings, metrics: Mapping[str, Tensor], device: torch.device) -> Bounds | None:
    """The limits on signals among the metrics, on the device."""
    rows = []
    for number, limit in enumerate(LIMITS, 1):
        bound, sign = getattr(settings, limit.setting), -1.0 if limit.setting.startswith("min") else 1.0
        if bound is not None and limit.signal in metrics:
            rows.append((limit.signal, number, sign, sign * bound))
    if not rows:
        return None
    names, *columns = zip(*rows, strict=True)
    return Bounds(names, *(send(torch.tensor(column, dtype=torch.float64, device="cpu"), device) for column in columns))


def finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a non-finite value, None where all are finite."""
    return next((name for name, value in tensors.items() if not bool(value.isfinite().all())), None)


def snapshot_of(state: Guarded) -> dict[str, Any]:
    """Copies of what an update changes in place: not the objective's state, nor what the energy has beyond its average.

    Those are fixed buffers.
    """
    tree = state.core()
    energy = {name: value for name, value in tree["energy"].items() if name in tree["average"]}
    changed = {"energy": energy, "average": tree["average"], "optimizer": tree["optimizer"]}
    return {**copy.deepcopy(changed), "objective": tree["objective"], "step": state.step}
