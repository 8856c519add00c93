"""The engine of Ray: actors that hold the model, each with one block at a time.

The driver hands out blocks. A killed worker's actor is replaced by a new one, and the block that it had is handed out
once more: a part is the same whoever makes it, and replaces itself. A cluster that is started here listens on the
loopback alone, asks for a token, has no dashboard, reports nothing, and ends with its driver, however that ends.
"""

import os
import secrets
import shutil
import signal
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any

from thalweg.core.device import find_device
from thalweg.core.errors import ThalwegError, UserError, one_line
from thalweg.scale.plan import RowBlock
from thalweg.scale.worker import Failure, Job, QValues, Worker, one_thread

MAX_DEATHS = 5  # of workers at one block: then it is the block
STARTS = 3
PATIENCE = 10.0  # seconds without a result, after which it is asked whether any node lives
OBJECT_STORE = 80 << 20  # bytes: blocks are numbers of rows, and results are a few words
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's word for: the node's address is the loopback
    "RAY_worker_niceness": "0",  # Ray gives 15, which beside other work is next to nothing
}


@cache
def _token() -> str:
    """A token for all clusters that this process starts: Ray keeps the first one that it sees."""
    return secrets.token_hex(32)


def require_ray() -> None:
    """UserError where Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError("needs Ray", argument="--engine", value="ray", hint="pip install 'thalweg[cluster]'")


class RayEngine:
    """Makes parts by workers of Ray.

    Args:
        job: What they are told.
        workers: How many; None: one a core, or one a GPU where they compute on one.
        address: Of a cluster that runs; None: one is started here.
    """

    def __init__(self, job: Job, *, workers: int | None, address: str | None):
        require_ray()
        self.job, self.on_gpu = job, find_device(job.options.device).type == "cuda"
        self.retried = 0  # blocks that were handed out again
        self._folder: str | None = None
        self._free: deque[Any] = deque()
        self._before = {name: os.environ.get(name) for name in (*SETTINGS, "RAY_AUTH_TOKEN")}
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._start(workers, address)
        except BaseException:
            self.close()
            raise
        finally:
            with suppress(ValueError):  # not the main thread
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _start(self, workers: int | None, address: str | None) -> None:
        if address is None:
            os.environ.update(SETTINGS | {"RAY_AUTH_TOKEN": _token()})
        import ray

        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
        try:
            if address is None:
                self._start_cluster(workers or len(os.sched_getaffinity(0)), quiet)
            else:
                ray.init(address=address, **quiet)
        except Exception as error:  # Ray raises Exception itself for some of these
            where = "Ray" if address is None else address
            raise ThalwegError(f"{where}: no cluster could be had ({one_line(error)})") from error
        there = ray.cluster_resources()
        self.count = workers or max(1, int(there.get("GPU" if self.on_gpu else "CPU", 1)))
        needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(self.on_gpu), "max_restarts": 0, "max_task_retries": 0}
        self._actor: Any = ray.remote(**needs)(Actor)

    def _start_cluster(self, cores: int, quiet: dict[str, Any]) -> None:
        """Start Ray here; on a machine that is busy it is slower than Ray itself waits, so it is tried again."""
        import ray

        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
        for left in reversed(range(STARTS)):
            try:
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE,
                    _temp_dir=self._folder,
                    **quiet,
                )
                return
            except Exception:
                ray.shutdown()
                if not left:
                    raise

    def run(self, blocks: Sequence[RowBlock], filling: QValues | None) -> Iterator[Failure | None]:
        """Make the parts of blocks, in any order; None each, or what went wrong."""
        import ray
        from ray.exceptions import RayActorError, WorkerCrashedError

        shared = None if filling is None else ray.put(filling)
        waiting, deaths, busy = deque(blocks), Counter[int](), {}
        if not self._free:
            self._free.extend(self._actor.remote(self.job) for _ in range(min(self.count, len(blocks))))
        free = self._free
        while waiting or busy:
            while free and waiting:
                actor, block = free.popleft(), waiting.popleft()
                busy[actor.do.remote(block, shared)] = actor, block
            ready = ray.wait([*busy], num_returns=1, timeout=PATIENCE)[0]
            if not ready and not any(node["Alive"] for node in ray.nodes()):
                raise ThalwegError("Ray: no node of it is left; give the same command again, which goes on")
            for done in ready:
                actor, block = busy.pop(done)
                try:
                    failure = ray.get(done)
                except (RayActorError, WorkerCrashedError) as error:
                    deaths[block.number] += 1
                    free.append(self._actor.remote(self.job))  # a call of it waits until it is there
                    if deaths[block.number] < MAX_DEATHS:
                        self.retried += 1
                        waiting.appendleft(block)
                        continue
                    failure = Failure("work", _died(self.job, block, error), None, None, None)
                else:
                    free.append(actor)
                yield failure

    def close(self) -> None:
        """End the cluster that was started here, or leave the one that was there."""
        import sys

        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        for name, value in self._before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class Actor:
    """A worker in a process of Ray, which loads the model when it has its first block."""

    def __init__(self, job: Job):
        self._threads = one_thread()  # for as long as the process lives
        self._threads.__enter__()
        self.job = job
        self.worker: Worker | None = None

    def do(self, block: RowBlock, filling: QValues | None) -> Failure | None:
        """As `Worker.do`."""
        try:
            self.worker = self.worker or Worker(self.job)
        except ThalwegError as error:
            return Failure.of(error)
        return self.worker.do(block, filling)


def _died(job: Job, block: RowBlock, error: Exception) -> str:
    where, last = job.files[block.file][0], block.first + block.rows - 1
    return (
        f"{where}, rows {block.first} to {last} (counted from 0): {MAX_DEATHS} workers died at them; "
        f"if memory is short, give fewer --block-rows or --workers ({one_line(error)[:120]})"
    )
