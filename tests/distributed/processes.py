"""ProcessGroup as real processes on this machine, forked so that none imports torch anew, and small runs for them."""

import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # which torch's optimisers import late

from thalweg.cli import main as cli
from thalweg.core import store
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.toy import two_moons
from thalweg.training.distributed import joined
from thalweg.training.metrics_log import read_metrics
from thalweg.training.settings import TrainSettings
from thalweg.training.state import FOLDER
from thalweg.training.trainer import Trainer

LONGEST = 60.0  # seconds that a survivor may take to end
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
STEPS, EVERY = 24, 5
TRAIN = ["two-moons", "--recipe", "pcd", "--steps", str(STEPS), "--checkpoint-every", str(EVERY), "--no-report"]
TRAIN += ["train.batch_size=16", "data.limit=99", "energy.width=16", "train.log_every=1", "train.precision=fp32"]
TRAIN += ["objective.num_steps=3", "objective.buffer_size=64", "train.guard.every=3", "train.warmup=5"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets, on the loopback interface alone."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {**{k: str(v) for k, v in given.items()}, "MASTER_ADDR": "127.0.0.1", **LOOPBACK}


class Run:
    """`work(rank)` in each of `size` processes; what they say is in `LOG.RANK`."""

    def __init__(self, work: Callable[[int], object], log: Path, size: int = 2):
        port, self.logs = free_port(), [log.with_name(f"{log.name}.{rank}") for rank in range(size)]
        self.pids = [self._fork(work, rank, size, port) for rank in range(size)]
        self.codes: dict[int, int] = {}
        self.ended: dict[int, float] = {}

    def _fork(self, work, rank, size, port) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            out = os.open(self.logs[rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            os.environ.update(environment(rank, size, port))
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
            torch.set_num_threads(1)
            work(rank)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait(self, longest: float = 120.0) -> list[int]:
        """The exit codes; minus the signal for a process that one ended. None is left behind."""
        end = time.monotonic() + longest
        while len(self.codes) < len(self.pids) and time.monotonic() < end:
            self.poll()
            time.sleep(0.01)
        late = [rank for rank in range(len(self.pids)) if rank not in self.codes]
        for rank in late:
            self.kill(rank)
            os.waitpid(self.pids[rank], 0)
        assert not late, f"ranks {late} hung; they said {[self.said(rank) for rank in late]}"
        return [self.codes[rank] for rank in range(len(self.pids))]

    def poll(self) -> None:
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank], self.ended[rank] = os.waitstatus_to_exitcode(status), time.monotonic()

    def kill(self, rank: int, signum: int = signal.SIGKILL) -> None:
        if rank not in self.codes:
            os.kill(self.pids[rank], signum)

    def said(self, rank: int) -> str:
        return self.logs[rank].read_text()


def command(arguments: list[str], change: Callable[[int], object] = lambda rank: None) -> Callable[[int], None]:
    """The work of `thalweg train`; `change(rank)` may disturb the process before."""

    def work(rank):
        change(rank)
        sys.argv = ["thalweg", "train", *arguments]
        cli.main()

    return work


def train(folder: Path, *more: str, change=lambda rank: None, size: int = 2) -> Run:
    """The small run of persistent chains by several processes, in a folder."""
    return Run(command([*TRAIN, "-o", str(folder), *more], change), folder.with_name(f"{folder.name}.log"), size)


def at_step(step: int, act: Callable[[], object]) -> None:
    """In this process, act between the end of a step and its report."""
    report = Trainer._report

    def first(self, tracker, metrics, plan):
        if self.state.step == step:
            act()
        return report(self, tracker, metrics, plan)

    Trainer._report = first


def at_sync(number: int, act: Callable[[], object]) -> None:
    """In this process, act before the given one of the calls that put something on the disk."""
    count = [0]
    for name in ("fsync", "replace", "rename", "mkdir"):
        setattr(os, name, counting(getattr(os, name), count, number, act))


def counting(original, count: list[int], number: int, act: Callable[[], object]):
    """`original`, which counts its calls and acts before one of them."""

    def call(*args, **kwargs):
        count[0] += 1
        if count[0] == number:
            act()
        return original(*args, **kwargs)

    return call


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def outcome(folder: Path):
    """All tensors at the end of a run (weights, average, moments, every rank's chains), the rest, the logged rows."""
    last = folder / FOLDER / f"step-{STEPS:08d}"
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder)]
    tensors = store.read_tensors(last / "state.safetensors")
    tensors |= {f"bundle/{name}": value for name, value in store.read_tensors(folder / "model.safetensors").items()}
    return tensors, json.dumps(store.read_json(last / "state.json")["tree"]), rows


def differences(a, b) -> list[str]:
    """Names of what differs between two outcomes, bit for bit."""
    (mine, structure, rows), (theirs, other, others) = a, b
    found = [name for name in mine.keys() | theirs.keys() if not torch.equal(mine[name], theirs[name])]
    return found + ["structure"] * (structure != other) + ["metrics.jsonl"] * (rows != others)


class Double:
    """A transform to float64, so that a comparison is one of the method and not of its roundings."""

    def forward(self, x):
        return x.double()


def trainer(folder: Path, group, energy, objective, *, steps: int = 1, hooks=(), **changes) -> Trainer:
    """A trainer on a rank's part of batches of 16, in float64."""
    given = {"steps": steps, "batch_size": 16, "precision": "fp32", "log_every": 1, "clip": None, **changes}
    if group.rank == 0:
        folder.mkdir(exist_ok=True)
    return Trainer(
        energy=energy.double(),
        objective=objective,
        loader=Loader(
            two_moons(90, generator(0, "moons")), batch_size=16, seed=3, rank=group.rank, world_size=group.size
        ),
        transform=Double(),
        settings=TrainSettings.model_validate(given),
        folder=folder,
        seed=3,
        hooks=hooks,
        tensorboard=False,
        group=group,
    )


def together(work: Callable, log: Path, change=lambda rank: None, size: int = 2) -> Run:
    """`work(group)` in processes that have joined."""

    def joining(rank):
        change(rank)
        logger = logging.getLogger("thalweg")
        logger.setLevel(logging.INFO)
        with joined() as group:
            work(group)
        assert logger.level == logging.INFO, "the level that `joined` sets in the other ranks is put back"

    return Run(joining, log, size)
