"""What is done when a monitor confirms that the samples of a run have become worse.

| policy | what is done |
|---|---|
| "warn" | one warning |
| "adjust" | the objective's variant after a collapse, with longer chains and more restarts; else as "rollback" |
| "rollback" | weights, optimiser, average and chains go back to the last look that found nothing suspicious |
| "stop" | the run ends with `Diverged`; its last good checkpoint stays |

Longer chains do not help where samples are copies of training rows, or where the objective has no chains: then "adjust"
rolls back. After as many rollbacks as the guard allows the run ends.
"""

import logging
from typing import Any

from thalweg.core.errors import Diverged
from thalweg.core.state_tree import flatten
from thalweg.objective.base import changes
from thalweg.training.guard import Guard, Guarded, finite, settings_set, snapshot_of, variant_of
from thalweg.training.signals import Policy, Verdict

log = logging.getLogger("thalweg")


def heed(guard: Guard, state: Guarded, verdict: Verdict, policy: Policy) -> str | None:
    """Act on a verdict; what was done, in words, or None. Raises Diverged under "stop" and after the last rollback."""
    if verdict.alarm is None:
        if verdict.calm and policy in ("adjust", "rollback"):
            _remember(guard, state)
        return None
    advice = "see docs/guide/monitor.md for what to change"
    trouble = Diverged(f"{verdict.sentence} at step {state.step}", what=verdict.alarm, step=state.step, advice=advice)
    if policy == "stop":
        raise trouble
    if policy == "warn":
        log.warning("%s; the run goes on as the policy is to warn", trouble)
        return "warned"
    done = _adjusted(guard, state, verdict) if policy == "adjust" else []
    done = done or _rolled_back(guard, state, trouble)
    action = " and ".join([", ".join(done[:-1])] * (len(done) > 1) + done[-1:])
    log.warning("%s; %s", trouble, action)
    return action


def _remember(guard: Guard, state: Guarded) -> None:
    """Keep the state at a look that found nothing suspicious; all of it must be finite."""
    if not guard.group.any(finite(flatten(state.core())[0])):
        state.guard = state.guard._replace(varied=snapshot_of(state))


def _adjusted(guard: Guard, state: Guarded, verdict: Verdict) -> list[str]:
    """Take the objective's next variant after a collapse, where it differs from this one."""
    if verdict.alarm == "memorisation":
        return []
    after = state.guard._replace(collapses=state.guard.collapses + 1)
    changed: dict[str, tuple[Any, Any]] = changes(*(variant_of(guard.objective, g) for g in (state.guard, after)))
    if changed:
        state.guard = after
    return settings_set(changed)


def _rolled_back(guard: Guard, state: Guarded, trouble: Diverged) -> list[str]:
    snapshot = state.guard.varied or state.guard.origin
    if snapshot is None or state.guard.rollbacks >= guard.settings.max_rollbacks:
        after = f", after {state.guard.rollbacks} rollbacks" if state.guard.rollbacks else ""
        raise trouble.described(f"{trouble}{after}")
    _, done = guard.go_back(state, snapshot)
    return [*done[:-1], f"{done[-1]} (rollback {state.guard.rollbacks} of {guard.settings.max_rollbacks})"]
