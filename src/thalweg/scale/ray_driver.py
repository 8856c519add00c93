"""The process of `RayEngine` in which Ray is driven: lines of JSON come in and go out.

It has a process of its own since Ray ends the process that drives it, without an exception, where its raylet or its
gcs_server dies. Nothing of ours is imported here that the blocks themselves do not need. A killed worker's actor is
replaced by a new one, and the block that it had is handed out once more.
"""

import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from thalweg.core.errors import one_line

MAX_DEATHS = 5  # of workers at one block: then it is the block
STARTS = 3
PATIENCE = 10.0  # seconds without a result, after which it is asked whether any node lives
EVERY = 0.5  # seconds between looks whether the engine still wants anything
LAST = 10.0  # seconds in which Ray must be left when it does not
OBJECT_STORE = 80 << 20  # bytes: blocks are numbers of rows, and results are a few words
Failed = list[Any]  # a `Failure` as JSON


class StopRequested(Exception):
    """The engine wants no more."""


class RayLost(Exception):
    """Ray can do no more work, in words."""


class BlockResult(NamedTuple):
    """A block that is done: what went wrong, and whether workers died at it."""

    failure: Failed | None
    deaths: int = 0


class Actor:
    """A worker in a process of Ray, which loads the model when it has its first block."""

    def __init__(self, job: dict[str, Any]):
        from thalweg.scale.worker import one_thread

        self._threads = one_thread()  # for as long as the process lives
        self._threads.__enter__()
        self.job, self.worker = job, None

    def do(self, block: list[Any], filling: dict[str, Any] | None) -> Failed | None:
        """As `Worker.do`, of plain values."""
        from thalweg.core.errors import ThalwegError
        from thalweg.scale.worker import Failure, Job, QValues, Worker, block_of

        try:
            self.worker = self.worker or Worker(Job.of(self.job))
        except ThalwegError as error:
            return Failure.of(error).to_list()
        failure = self.worker.do(block_of(block), None if filling is None else QValues.of(filling))
        return None if failure is None else failure.to_list()


class Driver:
    """Hands blocks out to actors.

    Args:
        about: What `RayEngine` says: job, workers, address, folder, on_gpu.
        stopped: Is set when the engine wants no more.
    """

    def __init__(self, about: dict[str, Any], stopped: threading.Event):
        import ray

        self.job, self.stopped = about["job"], stopped
        address, workers = about["address"], about["workers"]
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
        if address is None:
            _start_cluster(workers or len(os.sched_getaffinity(0)), about["folder"], quiet)
        else:
            ray.init(address=address, **quiet)
        there = ray.cluster_resources()
        self.count = workers or max(1, int(there.get("GPU" if about["on_gpu"] else "CPU", 1)))
        needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(about["on_gpu"])}
        needs |= {"max_restarts": 0, "max_task_retries": 0}
        self._actor: Any = ray.remote(**needs)(Actor)
        self._free: deque[Any] = deque()

    def run(self, blocks: list[list[Any]], filling: dict[str, Any] | None) -> Iterator[BlockResult]:
        """Make blocks, in any order, until all are there or one has failed.

        Blocks are handed out in order, so those before one that fails are there or in work. They are waited for: the
        failure that comes last is that of the first block that has one.
        """
        import ray
        from ray.exceptions import RayActorError, WorkerCrashedError

        shared = None if filling is None else ray.put(filling)
        waiting, deaths, busy = deque(blocks), Counter[int](), {}
        if not self._free:
            self._free.extend(self._actor.remote(self.job) for _ in range(min(self.count, len(blocks))))
        free, end, failed = self._free, float("inf"), None
        while any(block[0] < end for block in waiting) or any(block[0] < end for _, block in busy.values()):
            while free and waiting and waiting[0][0] < end:
                actor, block = free.popleft(), waiting.popleft()
                busy[actor.do.remote(block, shared)] = actor, block
            for done in self._wait([*busy]):
                actor, block = busy.pop(done)
                try:
                    failure = ray.get(done)
                except (RayActorError, WorkerCrashedError) as error:
                    deaths[block[0]] += 1
                    free.append(self._actor.remote(self.job))  # a call of it waits until it is there
                    if deaths[block[0]] < MAX_DEATHS:
                        waiting.appendleft(block)
                        continue
                    failure = ["work", _died(self.job, block, error), None, None, None, False]
                else:
                    free.append(actor)
                if failure is None:
                    yield BlockResult(None, deaths[block[0]])
                elif block[0] < end:
                    end, failed = block[0], BlockResult(failure, deaths[block[0]])
        if failed is not None:
            yield failed

    def _wait(self, calls: list[Any]) -> list[Any]:
        """The first call that is done; none where it takes long, though a node is there."""
        import ray

        for _ in range(round(PATIENCE / EVERY)):
            ready = ray.wait(calls, num_returns=1, timeout=EVERY)[0]
            if self.stopped.is_set():
                raise StopRequested
            if ready:
                return ready
        if not any(node["Alive"] for node in ray.nodes()):
            raise RayLost("no node of it is left")
        return []


def _start_cluster(cores: int, folder: str, quiet: dict[str, Any]) -> None:
    """Start Ray here; on a machine that is busy it is slower than Ray itself waits, so it is tried again."""
    import ray

    how: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE, "_temp_dir": folder}
    for left in reversed(range(STARTS)):
        try:
            ray.init(address="local", num_cpus=cores, **how, **quiet)
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise


def _died(job: dict[str, Any], block: list[Any], error: Exception) -> str:
    _, file, first, rows, _ = block
    return (
        f"{job['files'][file][0]}, rows {first} to {first + rows - 1} (counted from 0): {MAX_DEATHS} workers died at "
        f"them; if memory is short, give fewer --block-rows or --workers ({one_line(error)[:120]})"
    )


def main() -> None:
    """Serve one engine: what it says of itself, then lists of blocks, until its lines end."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer

    def tell(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")

    asked, stopped = SimpleQueue[dict[str, Any] | None](), threading.Event()
    threading.Thread(target=_listen, args=(asked, stopped), daemon=True).start()
    import ray

    about = asked.get()
    try:
        if about is None:
            return
        try:
            driver = Driver(about, stopped)
        except Exception as error:  # Ray raises Exception itself for some of these
            tell(no_cluster=one_line(error))
            return
        tell(started=True)
        while (request := asked.get()) is not None:
            for made in driver.run(**request):
                tell(failure=made.failure, deaths=made.deaths)
    except (StopRequested, BrokenPipeError):
        pass
    except RayLost as error:
        tell(gone=str(error))
    except Exception as error:
        tell(gone=f"it failed ({one_line(error)[:120]})")
    finally:
        ray.shutdown()
        if about is not None:
            _leave(about["folder"])


def _listen(asked: "SimpleQueue[dict[str, Any] | None]", stopped: threading.Event) -> None:
    """Take the engine's lines; at their end, as when it is killed, leave Ray in bounded time."""
    folder = None
    for line in sys.stdin:
        request = json.loads(line)
        folder = request.get("folder", folder)
        asked.put(request)
    stopped.set()
    asked.put(None)
    ended = threading.Timer(LAST, _leave, (folder,))
    ended.daemon = True
    ended.start()


def _leave(folder: str | None) -> None:
    """End this process and what it has started; an engine that was killed cannot."""
    remove(folder)
    end_group(os.getpid())
    os._exit(1)


def end_group(driver: int) -> None:
    """End what the driver has started: where its gcs_server has died, Ray's agents live on for two minutes."""
    with suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(driver, signal.SIGKILL)


def remove(folder: str | None) -> None:
    """Remove the folder of a cluster that was started here."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
