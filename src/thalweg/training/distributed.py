"""Data-parallel training by several processes.

The loss is a mean over the batch, so the mean of the ranks' gradients is that of the whole batch. It has the same bits
on every rank, hence so have weights, average and optimiser, which are never sent. An objective's state differs: each
rank has its own chains. All that the loop depends on (a value that is not finite, a limit, a signal, the plan) is
reduced or broadcast first, so all ranks take the same steps.

A rank that dies closes its connections, which fails the next collective of the others; one that hangs fails it after
`TIMEOUT`. While rank 0 works alone (reading, writing, drawing) the others wait longer. Data are sent as tensors, JSON
or safetensors, since torch's collectives of objects use pickle.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load
from torch import Tensor, nn

from thalweg.core import check, state_tree, store
from thalweg.core.device import laid_out
from thalweg.core.errors import RankLost, UserError

T = TypeVar("T")
JOIN = timedelta(seconds=25)  # for all ranks to join; where the first one never answers, the store tries twice
TIMEOUT = timedelta(seconds=40)  # of a collective in a step
PATIENCE = timedelta(minutes=30)  # while rank 0 works alone
NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
log = logging.getLogger("thalweg")


class SingleProcess:
    """The methods of `ProcessGroup` for a run of one process, without communication."""

    rank, size = 0, 1

    def average(self, module: nn.Module) -> None:
        """Make each gradient the mean over ranks."""

    def mean(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over ranks; what is not finite on one is not finite in the mean."""
        return metrics

    def worst(self, cause: Tensor) -> Tensor:
        """The largest number of any rank, (), on its device; the host does not wait for it."""
        return cause

    def latest(self, signum: int, seconds: float) -> tuple[int, float]:
        """The signal that any rank has caught, else 0, and the longest time."""
        return signum, seconds

    def any(self, complaint: str | None) -> str | None:
        """The text of the lowest rank that has one."""
        return complaint

    def assert_equal(self, what: str, text: Callable[[], str]) -> None:
        """Raise UserError unless all ranks have the same text."""

    def broadcast(self, value: Callable[[], T]) -> T:
        """The value on rank 0, which JSON must hold."""
        return value()

    def gather(self, tree: Any) -> Sequence[Any]:
        """On rank 0 the trees of the other ranks, of the same form as its own; elsewhere nothing."""
        return ()

    def on_rank0(self, work: Callable[[], object]) -> None:
        """Call `work` on rank 0; the others wait."""
        work()


class ProcessGroup:
    """One process of several. Every method is a collective: all ranks must call it, in the same order, else RankLost.

    A step takes one sum of the gradients and three of a few numbers; four where rows are read while it trains.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self._store: Any = None
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._collective():
            found, *_ = next(dist.rendezvous("env://", rank, size, timeout=JOIN))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a restart
            shared = dist.PrefixStore(f"thalweg-{attempt}", found)
            dist.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=JOIN)
            self._patient: Any = dist.new_group(timeout=JOIN, backend="gloo")
            self._store = shared
        dist.distributed_c10d._set_pg_timeout(TIMEOUT, dist.group.WORLD)
        dist.distributed_c10d._set_pg_timeout(PATIENCE, self._patient)

    def average(self, module: nn.Module) -> None:
        """By one sum of all gradients, with the number of ranks that have each; None where no rank has one."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        kind = torch.promote_types(torch.float32, max((p.dtype for p in parameters), key=lambda d: d.itemsize))
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = torch.tensor([float(p.grad is not None) for p in parameters], dtype=kind, device="cpu")
        apart = grads[0].device.type != "cpu"  # the host would wait for a GPU: numbers that it reads go by gloo
        flat = torch.cat([g.flatten().to(kind) for g in grads] + ([] if apart else [there]))
        with self._collective():
            dist.all_reduce(flat)
            if apart:
                dist.all_reduce(there)
        means = (flat / self.size).split([*(p.numel() for p in parameters), *([] if apart else [len(parameters)])])
        shares = there if apart else means[-1]
        for p, mean, share in zip(parameters, means, shares.tolist(), strict=False):
            p.grad = laid_out(mean.view_as(p).to(p.dtype), p) if share else None

    def mean(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """In float64, so that nothing finite overflows."""
        values = torch.stack([value.detach().to(torch.float64) for value in metrics.values()])
        return dict(zip(metrics, self._reduced(values, dist.ReduceOp.SUM) / self.size, strict=True))

    def worst(self, cause: Tensor) -> Tensor:
        """By the backend of the tensor's device."""
        return self._reduced(cause, dist.ReduceOp.MAX)

    def latest(self, signum: int, seconds: float) -> tuple[int, float]:
        """The highest of both."""
        number, longest = self._reduced(torch.tensor([signum, seconds], dtype=torch.float64), dist.ReduceOp.MAX)
        return int(number), float(longest)

    def any(self, complaint: str | None) -> str | None:
        """Broadcast by the lowest rank that has one."""
        mine = torch.tensor(self.size if complaint is None else self.rank)
        lowest = int(self._reduced(mine, dist.ReduceOp.MIN))
        return None if lowest == self.size else self._broadcast_bytes((complaint or "").encode(), lowest).decode()

    def assert_equal(self, what: str, text: Callable[[], str]) -> None:
        """By a hash, so that anything may be compared."""
        digest = hashlib.sha256(text().encode()).digest()
        same = digest == self._broadcast_bytes(digest, 0)
        bad = self.any(None if same else f"must be the same on all ranks; rank {self.rank} differs from rank 0")
        if bad:
            raise UserError(bad, argument=what, hint="start all ranks by one command, on the same files and versions")

    def broadcast(self, value: Callable[[], T]) -> T:
        """Rank 0 alone calls `value`."""
        found = json.dumps(value()).encode() if self.rank == 0 else b""
        return json.loads(self._broadcast_bytes(found, 0))

    def gather(self, tree: Any) -> Sequence[Any]:
        """One rank after the other, so that rank 0 holds one message at a time."""
        if self.rank:
            tensors, structure = state_tree.flatten(tree)
            self._send(json.dumps(structure).encode())
            self._send(store.tensor_bytes(tensors))
            return ()
        found = []
        for rank in range(1, self.size):
            structure = json.loads(self._receive(rank))
            found.append(state_tree.unflatten(load(self._receive(rank)), structure, like=tree))
        return found

    def on_rank0(self, work: Callable[[], object]) -> None:
        """The others wait up to `PATIENCE`."""
        if self.rank == 0:
            work()
        with self._collective():
            dist.all_reduce(torch.zeros(1), group=self._patient)

    def close(self, error: BaseException | None) -> None:
        """End the connections; an error of this rank is put in the store, for the messages of the others."""
        if error is not None and not isinstance(error, RankLost) and self._store is not None:
            with suppress(RuntimeError):
                self._store.set("failed", f"rank {self.rank} ended ({' '.join(str(error).split()) or 'stopped'})")
        if dist.is_initialized():
            dist.destroy_process_group()

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        with self._collective():
            dist.all_reduce(values, operation)
        return values

    def _broadcast_bytes(self, data: bytes, source: int) -> bytes:
        """The bytes of one rank, on all; waits up to `PATIENCE`."""
        size = torch.tensor(len(data))
        with self._collective():
            dist.broadcast(size, source, group=self._patient)
            buffer = _tensor(data) if self.rank == source else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(buffer, source, group=self._patient)
        return buffer.numpy().tobytes()

    def _send(self, data: bytes) -> None:
        with self._collective():
            dist.send(torch.tensor(len(data)), 0, group=self._patient)
            dist.send(_tensor(data), 0, group=self._patient)

    def _receive(self, rank: int) -> bytes:
        size = torch.tensor(0)
        with self._collective():
            dist.recv(size, rank, group=self._patient)
            buffer = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(buffer, rank, group=self._patient)
        return buffer.numpy().tobytes()

    def _stored_failure(self) -> str:
        """The error that another rank put in the store, if it is there: torchrun's, or rank 0's own."""
        kept = self.rank == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        with suppress(RuntimeError):
            if self._store is not None and kept and self._store.check(["failed"]):
                return self._store.get("failed").decode()
        return ""

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """Turn the backends' errors, all of them RuntimeErrors, into RankLost."""
        try:
            yield
        except RuntimeError as error:
            log.debug("%s", error)
            reason = self._stored_failure() or (
                "not all processes came in time"
                if self._store is None
                else f"another process has died, or has not answered for {TIMEOUT.seconds} s"
            )
            raise RankLost(
                f"rank {self.rank} of {self.size}: {reason}; what was saved is kept: start all processes again, "
                "with --resume"
            ) from error


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def address() -> tuple[int, int]:
    """(rank, world size) from torchrun's environment; UserError where that is incomplete or inconsistent."""
    environment = {name: os.environ.get(name, "") for name in NAMES}
    if environment["WORLD_SIZE"] in ("", "1"):
        return 0, 1
    for name, value in environment.items():
        if not value:
            several = f"must be set, as there are several processes (WORLD_SIZE={environment['WORLD_SIZE']})"
            raise UserError(several, argument=name, hint="start them by torchrun")
    size = check.whole("WORLD_SIZE", _number(environment["WORLD_SIZE"]), 1)
    return check.whole("RANK", _number(environment["RANK"]), 0, size - 1), size


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def single_process() -> SingleProcess:
    """The default group of a trainer; UserError where there are several processes, which would do the same work."""
    size = address()[1]
    if size > 1:
        hint = "give the trainer group=, from `with joined() as group`"
        raise UserError("must be 1 for a trainer without a group", argument="WORLD_SIZE", value=size, hint=hint)
    return SingleProcess()


@contextmanager
def joined() -> Iterator[SingleProcess | ProcessGroup]:
    """The processes of this run. At the end, also after an error, the group is closed.

    Inside, ranks other than 0 log errors only; afterwards the logger "thalweg" has its level of before.
    """
    rank, size = address()
    if size == 1:
        yield SingleProcess()
        return
    if dist.is_initialized():
        raise UserError("must not be initialised", argument="torch.distributed", hint="the training does that")
    level, error = log.level, None
    log.setLevel(logging.ERROR if rank else level)
    group = None
    try:
        group = ProcessGroup(rank, size)
        yield group
    except BaseException as caught:
        error = caught
        raise
    finally:
        log.setLevel(level)
        if group is not None:
            group.close(error)
        elif dist.is_initialized():
            dist.destroy_process_group()
