"""The state of a training, and its checkpoints.

Weights, their running average, the optimiser's moments, the objective's state (such as a replay buffer), the guard's
snapshots and the step number. There is no generator state: randomness is addressed (`thalweg.core.rng`). A checkpoint
is a sealed folder `checkpoints/step-N`, tensors as safetensors and the rest as JSON. Of several processes rank 0
writes; the objectives' states of the other ranks are under `others`.
"""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.core import state_tree, store
from thalweg.core.device import CPU, MaskableAdamW
from thalweg.core.errors import DamagedFile
from thalweg.training.distributed import ProcessGroup, SingleProcess
from thalweg.training.guard import GuardState, finite, not_finite
from thalweg.training.notes import Notes, placed
from thalweg.training.settings import TrainSettings

FOLDER = "checkpoints"
SNAPSHOTS = ("origin", "good", "candidate", "varied")  # fields of the guard's state


@dataclass
class TrainState:
    """The mutable state of a run."""

    energy: nn.Module
    average: nn.Module  # has the exponential moving average of the energy's weights
    optimizer: MaskableAdamW
    objective: Any  # the objective's state
    step: int = 0
    seconds: float = 0.0
    guard: GuardState = field(default_factory=GuardState)
    monitor: Any = None  # the memory of `training.signals.Signals`, on rank 0
    saved: str = ""  # the checkpoint that this state was last written to or loaded from

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.energy.parameters()).device

    def update_average(self, decay: float, bad: Tensor | None = None) -> None:
        """average += (1 - d)(weights - average), d = min(decay, (1 + n)/(10 + n)), less at first.

        `bad` (), on the device: nothing where it is true.
        """
        d = min(decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            if bad is not None:
                average: list[Tensor] = list(self.average.parameters())
                weights: list[Tensor] = list(self.energy.parameters())
                change = torch._foreach_sub(weights, average)
                torch._foreach_mul_(change, (1 - d) * (~bad).to(average[0].dtype))
                torch._foreach_add_(average, change)
                for mine, theirs in self._buffers():
                    mine.copy_(torch.where(bad, mine, theirs))
                return
            torch._foreach_lerp_(list(self.average.parameters()), list(self.energy.parameters()), 1 - d)
            for mine, theirs in self._buffers():
                mine.copy_(theirs)

    def save(self, folder: Path, keep: int, group: SingleProcess | ProcessGroup | None = None) -> Path:
        """Write checkpoints/step-N, drop all but the newest `keep`; Diverged, nothing written, if not all is finite."""
        group = group or SingleProcess()
        path = folder / FOLDER / f"step-{self.step:08d}"
        tensors, structure = state_tree.flatten(self._tree())
        bad = group.any(finite(tensors))
        if bad:
            raise not_finite(bad, self.step)
        others = group.gather(self._own())
        if others:
            tensors, structure = state_tree.flatten({**self._tree(), "others": others})
        group.on_rank0(lambda: self._write(path, tensors, structure, keep))
        self.saved = path.name
        return path

    def load(self, path: Path, group: SingleProcess | ProcessGroup | None = None) -> None:
        """Set all of the state from a checkpoint folder; DamagedFile where it does not fit this run."""
        group = group or SingleProcess()
        header = store.read_json(path / "state.json")
        core = self.core()
        own = {"objective": self.objective, "guard": [self.objective] * len(SNAPSHOTS)}
        like = {
            **core,
            "guard": GuardState(core, core, core, notes=Notes.begin(0, 0, CPU), varied=core),
            "others": [own] * (group.size - 1),
        }
        tree = state_tree.unflatten(store.read_tensors(path / "state.safetensors"), header["tree"], like=like)
        size = 1 + len(tree.get("others", ()))
        if size != group.size:
            text = f"holds the state of {size} processes, and these are {group.size}"
            raise DamagedFile(text, argument=str(path), hint="remove it")
        try:
            if group.rank:
                tree = _of_rank(tree, tree["others"][group.rank - 1])
            self.restore(tree)
            self.guard, self.monitor = tree["guard"], tree.get("monitor")
            if self.guard.notes is not None:
                self.guard = self.guard._replace(notes=self.guard.notes.to(self.device))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise DamagedFile(f"does not fit the energy in config.json ({reason})", argument=str(path)) from error
        self.step, self.seconds, self.saved = header["step"], header["seconds"], path.name

    def restore(self, tree: dict[str, Any]) -> None:
        """Set weights, average, optimiser and objective from a tree as `core` gives, which is not changed."""
        self.energy.load_state_dict({**self._fixed(), **tree["energy"]})
        self.average.load_state_dict({**self._fixed(), **tree["average"]})
        self.optimizer.load_state_dict(copy.deepcopy(tree["optimizer"]))
        self.objective = placed(tree["objective"], self.objective)

    def core(self) -> dict[str, Any]:
        """All that a step changes, by name, and the energy's fixed buffers; tensors are not copied."""
        fixed = self._fixed()
        return {
            "energy": dict(self.energy.state_dict()),
            "average": {name: value for name, value in self.average.state_dict().items() if name not in fixed},
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective,
        }

    def _fixed(self) -> dict[str, Tensor]:
        """The energy's buffers that no step changes, which its modules name in `fixed_buffers`: large tables."""
        names = _fixed_names(self.energy)
        return {name: value for name, value in self.energy.state_dict().items() if name in names} if names else {}

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Buffers of the average and of the energy that a step may change."""
        fixed = _fixed_names(self.energy)
        pairs = zip(self.average.named_buffers(), self.energy.buffers(), strict=True)
        return [(mine, theirs) for (name, mine), theirs in pairs if name not in fixed]

    def _tree(self) -> dict[str, Any]:
        monitor = {} if self.monitor is None else {"monitor": self.monitor}
        return {**self.core(), "guard": self.guard, **monitor}

    def _own(self) -> dict[str, Any]:
        """What differs from rank to rank: the objective's state, now and in the guard's snapshots."""
        return {"objective": self.objective, "guard": [shot and shot["objective"] for shot in _snapshots(self.guard)]}

    def _write(self, path: Path, tensors: dict[str, Any], structure: Any, keep: int) -> None:
        def write(aside: Path) -> None:
            store.write_tensors(aside / "state.safetensors", tensors)
            store.write_tensors(aside / "model.safetensors", dict(self.average.state_dict()))
            store.write_json(aside / "state.json", {"step": self.step, "seconds": self.seconds, "tree": structure})

        path.parent.mkdir(exist_ok=True)
        self._drop(path.parent, keep)  # once more, as a kill may have come before: at most keep + 1 are on the disk
        store.save_folder(path, write)
        self.saved = path.name
        self._drop(path.parent, keep)

    def _drop(self, parent: Path, keep: int) -> None:
        """Remove all but the newest `keep` up to the last valid one; later ones are damaged."""
        names = sorted(old.name for old in parent.glob("step-*"))
        kept = [name for name in names if name <= self.saved][-keep:]
        for name in set(names) - set(kept):
            shutil.rmtree(parent / name, ignore_errors=True)  # half-removed it no longer verifies: it is never loaded


def _fixed_names(energy: nn.Module) -> set[str]:
    parts = energy.named_modules()
    names = ((prefix, name) for prefix, part in parts for name in getattr(part, "fixed_buffers", ()))
    return {f"{prefix}.{name}" if prefix else name for prefix, name in names}


def _of_rank(tree: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The tree of another rank than 0, which differs in the objective's states."""
    guard: GuardState = tree["guard"]
    pairs = zip(_snapshots(guard), own["guard"], strict=True)
    shots = [shot and {**shot, "objective": mine} for shot, mine in pairs]
    guard = guard._replace(**dict(zip(SNAPSHOTS, shots, strict=True)))
    return {**tree, "objective": own["objective"], "guard": guard}


def _snapshots(guard: GuardState) -> list[Any]:
    return [getattr(guard, name) for name in SNAPSHOTS]


def fresh(energy: nn.Module, settings: TrainSettings, init: Callable[[nn.Module], Any]) -> TrainState:
    """The state before the first step. `init(energy)` makes the objective's own state."""
    decay = settings.weight_decay
    optimizer = MaskableAdamW(energy.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=decay)
    average = copy.deepcopy(energy).requires_grad_(False).eval()
    return TrainState(energy, average, optimizer, init(energy))
