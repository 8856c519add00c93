"""Small runs of every objective, what they end with, and ways to disturb them, for the tests in this folder."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from thalweg.core import state_tree, store
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.toy import two_moons
from thalweg.data.transform import Identity, Standardize
from thalweg.energy.networks.classifier import JointStridedEnergy
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.noise_conditional.classifier import JointUNetEnergy
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.objective.base import after_rollbacks
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.joint import JointLikelihood
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.score import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    MultiScaleDenoising,
    SlicedScoreMatching,
)
from thalweg.sampler.langevin import MALA, ULA
from thalweg.training.metrics_log import read_metrics
from thalweg.training.plan import Plan
from thalweg.training.settings import TrainSettings
from thalweg.training.state import FOLDER
from thalweg.training.trainer import Trainer

STEPS, EVERY, ROWS = 24, 5, 90  # 24 batches of 16 are four epochs of 90 rows
BUFFER = 48
TROUBLE = (13, 14)  # after these steps the loss of "rollback" is NaN, twice in a row


def _vectors():
    return two_moons(ROWS, generator(0, "moons"))


def _images():
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data[:ROWS] / 16).float().reshape(-1, 1, 8, 8)


def _mlp():
    return MLPEnergy(shape=(2,), width=16, depth=2)


def _residual():
    return ResidualEnergy(shape=(2,), width=16, num_blocks=1, embed=8)


def _chains(sampler=ULA, **changes):
    given = {"num_steps": (1, 3), "buffer_size": BUFFER, "initial": "normal", **changes}
    return ContrastiveDivergence(sampler=sampler(step_size=0.01), **given)


KEYED = {"conditional": True, "initial": "uniform"}
CASES = {
    "dual-vector": (_vectors, _residual, DualScoreMatching()),
    "dual-image": (_images, UNetEnergy.example, DualScoreMatching()),
    "jem-image": (_images, JointUNetEnergy.example, JointLikelihood(radius=0.1, rows=8)),
    "jem-chains": (_images, JointStridedEnergy.example, JointLikelihood(generative=_chains(**KEYED))),
    "dsm": (_vectors, _mlp, DenoisingScoreMatching()),
    "multi-scale": (_vectors, _residual, MultiScaleDenoising()),
    "explicit": (_vectors, _mlp, ExplicitScoreMatching()),
    "sliced": (_vectors, _mlp, SlicedScoreMatching()),
    "cd": (_vectors, _mlp, _chains(start="data")),
    "short-run": (_vectors, _mlp, _chains(start="noise")),
    "pcd-vector": (_vectors, _mlp, _chains()),
    "pcd-mala": (_vectors, _mlp, _chains(MALA)),
    "pcd-image": (_images, lambda: ConvEnergy(shape=(1, 8, 8)), _chains(initial="uniform")),
    "pcd-mixture": (_images, lambda: ConvEnergy(shape=(1, 8, 8)), _chains(initial="mixture")),
    "rollback": (_vectors, _mlp, _chains(energy_penalty=0.0)),  # which the rollback raises
}


class Wrapped:
    """An objective whose `loss` is `change(result of the loss)`."""

    def __init__(self, objective, change):
        self._objective, self._change = objective, change

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def after_rollback(self, times):
        return type(self)(after_rollbacks(self._objective, times), self._change)

    def loss(self, *args):
        return self._change(*self._objective.loss(*args))


def trainer(case, folder, hooks=(), **changes):
    """A run with a moving average, a decaying rate and the guard on, its plan made, that goes on where it stands."""
    data, energy, objective = CASES[case]
    x = data()
    transform = Standardize().fit(x) if x.ndim == 2 else Identity()
    torch.manual_seed(0)
    net = energy()
    if hasattr(net, "fit"):
        net.fit(transform.forward(x))
    folder.mkdir(exist_ok=True)
    if not (folder / "plan.json").exists():
        plan = Plan(num_steps=STEPS, precision="fp32", threads=1, step_seconds=0.01, checkpoint_every=EVERY)
        plan.save(folder)
    guard = {"every": 3, "patience": 2 if case == "rollback" else 5}
    given = {"steps": STEPS, "batch_size": 16, "warmup": 5, "log_every": 1, "guard": guard, **changes}
    run = Trainer(
        energy=net,
        objective=objective,
        loader=Loader(x, torch.arange(len(x)) % 3, batch_size=16, seed=3),
        transform=transform,
        settings=TrainSettings.model_validate(given),
        folder=folder,
        seed=3,
        hooks=hooks,
        tensorboard=False,
    )
    if case == "rollback":
        spoil = lambda loss, *rest: (loss * (float("nan") if run.state.step in TROUBLE else 1.0), *rest)  # noqa: E731
        run.update.objective = Wrapped(objective, spoil)
    return run


def stop_at(step, signum=signal.SIGTERM):
    """A hook that tells the run to stop once `step` is done: it saves and stops a step later."""

    def hook(state, plan):
        if state.step == step:
            os.kill(os.getpid(), signum)

    return hook


def outcome(run):
    """All tensors of the final state, by name, its structure, and the logged rows without their times."""
    tensors, structure = state_tree.flatten(run.state._tree())
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run.folder)]
    return tensors, json.dumps(structure), rows


def assert_same(run, expected):
    """The run is at its end with the bits of `expected`, an `outcome`."""
    tensors, structure, rows = outcome(run)
    assert run.state.step == STEPS
    assert structure == expected[1]
    assert tensors.keys() == expected[0].keys()
    different = [name for name, value in tensors.items() if not torch.equal(value, expected[0][name])]
    assert not different
    assert rows == expected[2]


def fork(work: Callable[[], int | None]) -> int:
    """Run `work` in a forked process, which ends with its result as exit code; the process's id."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return pid


def in_child(work: Callable[[], int | None]) -> int:
    """Run `work` in a forked process; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


@contextmanager
def counted(names: tuple[str, ...], at: Callable[[int, str, tuple], None]) -> Iterator[list[int]]:
    """Call `at(i, name, arguments)` before the i-th of these calls of `os`; yields [number of calls so far]."""
    number, before = [0], {name: getattr(os, name) for name in names}

    def wrap(name):
        def call(*args, **kwargs):
            number[0] += 1
            at(number[0], name, args)
            return before[name](*args, **kwargs)

        return call

    for name in names:
        setattr(os, name, wrap(name))
    try:
        yield number
    finally:
        for name, original in before.items():
            setattr(os, name, original)


def checkpoints(folder: Path) -> list[str]:
    """The names of the checkpoints in a run folder, whole or not."""
    return sorted(path.name for path in (folder / FOLDER).glob("step-*"))


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies."""
    return store.newest_valid(folder / FOLDER)[0]


def leftovers(folder: Path) -> list[Path]:
    """What a killed process left half-written."""
    return [path for path in folder.rglob("*") if path.name.startswith(".thalweg-")]


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
