"""The engine of Ray: actors that hold the model, each with one block at a time.

Ray is driven by a process of its own (`ray_driver`), so that its end is a line of ours, whichever of its processes
dies. A part is the same whoever makes it, and replaces itself. A cluster that is started here listens on the loopback
alone, asks for a token, has no dashboard, reports nothing, and ends with its driver, however that ends.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from thalweg.core.device import find_device
from thalweg.core.errors import ThalwegError, UserError
from thalweg.scale import ray_folder
from thalweg.scale.plan import RowBlock
from thalweg.scale.ray_driver import end_group, remove
from thalweg.scale.worker import Failure, Job, QValues

ENDING = 15.0  # seconds in which the driver must have ended
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's word for: the node's address is the loopback
    "RAY_worker_niceness": "0",  # Ray gives 15, which beside other work is next to nothing
}
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from thalweg.scale.ray_driver import main; main()"
DIED = "its raylet, its gcs_server or the process that drives it has died (is memory short?)"


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
        self.job, self.retried = job, 0  # blocks that were handed out again
        self._where = "Ray" if address is None else f"Ray at {address}"
        self._folder, own = None, {}
        if address is None:
            ray_folder.clean()
            self._folder = ray_folder.make()
            own = SETTINGS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._driver = subprocess.Popen(
            [sys.executable, "-P", "-c", START, json.dumps([os.path.abspath(each) for each in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | own,
            encoding="utf-8",
            pass_fds=() if self._folder is None else (self._folder.lock,),
            start_new_session=True,  # a Ctrl-C is for this process, which ends it
        )
        on_gpu = find_device(job.options.device).type == "cuda"
        about = {"job": job.to_dict(), "workers": workers, "address": address, "on_gpu": on_gpu}
        about["folder"] = None if self._folder is None else self._folder.path
        try:
            self._ask(about)
            answer = self._answer()
            if "no_cluster" in answer:
                where = "Ray" if address is None else address
                raise ThalwegError(f"{where}: no cluster could be had ({answer['no_cluster']})")
            if "started" not in answer:
                raise ThalwegError(f"{self._where}: {answer['gone']}, before any part was made; give the same command")
        except BaseException:
            self.close()
            raise

    def run(self, blocks: Sequence[RowBlock], filling: QValues | None) -> Iterator[Failure | None]:
        """Make the parts of blocks, in any order; None each, or what went wrong at the first that has not been made."""
        self._ask({"blocks": blocks, "filling": None if filling is None else filling.to_dict()})
        for done in range(len(blocks)):
            answer = self._answer()
            if "gone" in answer:
                raise ThalwegError(
                    f"{self._where}: {answer['gone']}, with {done} of {len(blocks)} parts of this call in "
                    f"{self.job.out}; nothing that is there is lost, and the same command goes on"
                )
            self.retried += answer["deaths"]
            yield None if answer["failure"] is None else Failure(*answer["failure"])

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._driver.stdin is not None  # as it is a pipe
        with suppress(BrokenPipeError):  # then the answer says so
            self._driver.stdin.write(json.dumps(request) + "\n")
            self._driver.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        """The driver's next line; `gone` where it has ended."""
        assert self._driver.stdout is not None  # as it is a pipe
        line = self._driver.stdout.readline()
        return json.loads(line) if line.endswith("\n") else {"gone": DIED}

    def close(self) -> None:
        """End the cluster that was started here, or leave the one that was there."""
        with suppress(BrokenPipeError):
            self._driver.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        try:
            self._driver.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        self._driver.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
        end_group(self._driver.pid)
        if self._folder is not None:
            remove(self._folder.path)
            os.close(self._folder.lock)
            self._folder = None
