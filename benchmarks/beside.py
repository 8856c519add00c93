"""How much slower an update of training is beside busy processes, under settings of the library of torch's threads.

    python benchmarks/beside.py                                              # what `thalweg` sets, and torch alone
    python benchmarks/beside.py --setting OMP_NUM_THREADS=1 --setting OMP_WAIT_POLICY=passive,OMP_PROC_BIND=true

Alone, beside one process in a loop, and beside two. Each setting has a process of its own, since the library reads its
environment when it is loaded; settings and numbers of busy processes take turns. A time counts where all other
processes of the machine together took less than `--quiet` of a core meanwhile (/proc/stat); the script waits for such
moments. The work is the update of the recipe dual-image, batch 64 (`thalweg.bench.dual`), under bfloat16 autocast.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from thalweg.bench.timing import markdown
from thalweg.cli.main import THREADS

TICKS = os.sysconf("SC_CLK_TCK")
OURS = ",".join(f"{name}={value}" for name, value in THREADS.items())


def work(steps: int, precision: str) -> None:
    """In a process of its own: for each line that comes in, so many updates; their mean time in seconds goes out."""
    import torch

    from thalweg.bench.dual import BATCH, energy_of, our_step
    from thalweg.core.rng import generator

    energy = energy_of()
    step = our_step(energy, torch.rand(BATCH, *energy.shape, generator=generator(0, "speed")))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in sys.stdin:
            start = time.perf_counter()
            for i in range(steps):
                step(i)
            print((time.perf_counter() - start) / steps, flush=True)


class Machine:
    """What the processes of the machine take, apart from some."""

    def __init__(self, ours: list[int]):
        self.ours = ours

    def seconds(self) -> float:
        """CPU time since the start of the machine."""
        user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
        own = 0
        for pid in self.ours:
            own += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
        return (user + nice + system + irq + softirq - own) / TICKS

    @contextmanager
    def share(self) -> Iterator[list[float]]:
        """One number after the block: the cores that others took in it."""
        start, before, found = time.perf_counter(), self.seconds(), []
        yield found
        found.append((self.seconds() - before) / (time.perf_counter() - start))

    def wait(self, quiet: float) -> None:
        """Until others take less than `quiet` of a core."""
        while True:
            with self.share() as others:
                time.sleep(1)
            if others[0] < quiet:
                return


@contextmanager
def process(*arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A Python process, ended with the block."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, *arguments], env=env, text=True, **pipes)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def environment(setting: str) -> dict[str, str]:
    """Ours without what is set of threads, and with the setting."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return clean | dict(part.split("=") for part in setting.split(",") if part)


def ask(worker: subprocess.Popen) -> float:
    """Seconds of an update."""
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


@contextmanager
def running(loops: list[subprocess.Popen]) -> Iterator[None]:
    """The busy processes run in this block only."""
    for loop in loops:
        loop.send_signal(signal.SIGCONT)
    try:
        yield
    finally:
        for loop in loops:
            loop.send_signal(signal.SIGSTOP)


def measure(settings: list[str], args: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    """Seconds of an update in each round, by setting and number of busy processes."""
    times = {(setting, n): [] for setting in settings for n in args.busy}
    with ExitStack() as stack:
        workers = {}
        for setting in settings:
            command = (__file__, "--work", args.precision, "--steps", str(args.steps))
            workers[setting] = stack.enter_context(process(*command, env=environment(setting)))
            ask(workers[setting])
        loops = [stack.enter_context(process("-c", "while True: pass")) for _ in range(max(args.busy))]
        with running(loops):
            time.sleep(1)
        machine = Machine([p.pid for p in (*workers.values(), *loops)])
        for _ in range(args.rounds):
            for (setting, n), found in times.items():
                while True:
                    machine.wait(args.quiet)
                    with running(loops[:n]), machine.share() as others:
                        seconds = ask(workers[setting])
                    if others[0] < args.quiet:
                        break
                found.append(seconds)
                print(f"{setting or 'none'}, {n} busy: {seconds:.3f} s", file=sys.stderr, flush=True)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", action="append", help="NAME=VALUE, several with commas; repeatable")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="updates in a measurement")
    parser.add_argument("--quiet", type=float, default=0.1, help="of a core")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.steps, args.work)
    settings, rows = ["", *(args.setting or [OURS])], []
    times = measure(settings, args)
    for (setting, n), found in times.items():
        alone = median(a / b for a, b in zip(found, times[setting, args.busy[0]], strict=True))
        of_none = median(a / b for a, b in zip(found, times["", n], strict=True))
        numbers = (f"{1e3 * median(found):.0f}", f"{1e3 * min(found):.0f} to {1e3 * max(found):.0f}")
        rows.append((setting or "none", str(n), *numbers, f"{alone:.2f}", f"{of_none:.2f}"))
    print(markdown(("setting", "busy processes", "ms an update", "range", "over alone", "over none"), rows, 2))


if __name__ == "__main__":
    main()
