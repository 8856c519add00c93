"""Times of contenders that take turns in one process, so that other load slows all of them alike; and their table."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import torch

Contender = Callable[[], object]  # does its work once


class Times(NamedTuple):
    """Seconds that each contender took in each round.

    Args:
        wall: By name, wall time.
        cpu: By name, CPU time.
        by_cpu: Whether CPU time counts: on one thread of the CPU. Else wall time does.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    by_cpu: bool

    def medians(self, name: str) -> tuple[float, float, float]:
        """Wall time, CPU time, and that of the two which counts, in seconds."""
        wall, cpu = median(self.wall[name]), median(self.cpu[name])
        return wall, cpu, cpu if self.by_cpu else wall

    def ratio(self, name: str, other: str) -> float:
        """The median over the rounds of one contender's time over another's."""
        times = self.cpu if self.by_cpu else self.wall
        return median(a / b for a, b in zip(times[name], times[other], strict=True))


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """So many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_turns(jobs: Mapping[str, Contender], rounds: int, threads: int, device: str = "cpu") -> Times:
    """The times of the jobs over `rounds` rounds; a first one is not counted. A device is waited for."""
    found = Times({name: [] for name in jobs}, {name: [] for name in jobs}, threads == 1 and device == "cpu")
    for i in range(rounds + 1):
        for name, job in jobs.items():
            start, used = time.perf_counter(), time.process_time()
            job()
            if device != "cpu":
                torch.accelerator.synchronize()
            if i:
                found.wall[name].append(time.perf_counter() - start)
                found.cpu[name].append(time.process_time() - used)
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], num_texts: int) -> str:
    """A Markdown table whose first `num_texts` columns are texts, the others numbers."""
    lines = [header, ["---"] * num_texts + ["---:"] * (len(header) - num_texts), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
