"""A training step of a transformer energy: double backward on math kernels, or finite differences on fused ones.

    python benchmarks/attention.py                        # lengths 128 to 2,048, about six minutes on one core
    python benchmarks/attention.py --json --lengths 512   # one length, for a machine to read

The energy takes series (B, L, C). A step is the loss and its gradient in the parameters, in float32: of denoising
score matching in both forms, and of contrastive divergence with a chain of one step. Steps take turns in one process;
times are medians of the rounds, CPU time on one thread (`OMP_NUM_THREADS`), else wall time. Memory is the peak of the
resident set over what the process has before the step, each in a process of its own (Linux). The cosine is that of the
parameter gradients of the two forms, after a few steps of training. Exit code 1 where a cosine is below .999.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

from thalweg.bench.timing import in_turns
from thalweg.core.rng import generator
from thalweg.energy.networks.transformer import TransformerEnergy
from thalweg.objective.base import Batch, Objective
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.score.score import DenoisingScoreMatching
from thalweg.sampler.langevin import ULA

CHANNELS = 8
TOKENS = 4096  # of a batch: fewer rows of a longer series, so that math kernels stay below 6 GB
WANTED = 0.999


def objectives() -> dict[str, Objective[Any]]:
    """The rows of the table."""
    return {
        "double backward, math": DenoisingScoreMatching(sigma=0.3, gradient="double_backward"),
        "finite differences, fused": DenoisingScoreMatching(sigma=0.3, gradient="finite_differences"),
        "contrastive divergence, fused": ContrastiveDivergence(sampler=ULA(step_size=0.01), num_steps=1, start="data"),
    }


def energy_of(options: argparse.Namespace, length: int) -> TransformerEnergy:
    """The network, the same in every process."""
    torch.manual_seed(0)
    return TransformerEnergy(
        shape=(length, CHANNELS), width=options.width, depth=options.depth, num_heads=options.heads
    )


def rows_of(length: int) -> Tensor:
    """Smooth series: sines of random frequencies and phases, a little noise."""
    draws = generator(0, "series")
    num = max(1, TOKENS // length)
    frequency, phase = torch.rand(num, 1, CHANNELS, generator=draws), torch.rand(num, 1, CHANNELS, generator=draws)
    at = torch.arange(length)[None, :, None]
    noise = torch.randn(num, length, CHANNELS, generator=draws)
    return 1.4 * torch.sin(0.5 * frequency * at + 6.28 * phase) + 0.05 * noise


def step_of(objective: Objective[Any], energy: TransformerEnergy, x: Tensor) -> Callable[[], list[Tensor]]:
    """A call that gives the gradients of the loss in the parameters, always from the same draws."""
    batch, parameters = Batch(x), list(energy.parameters())
    state = objective.init(energy, x, generator(0, "init"))
    noise = objective.draw(state, batch, generator(0, "noise"), 0.0)

    def step() -> list[Tensor]:
        loss, _, _ = objective.loss(energy, state, batch, noise)
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))

    return step


def train(energy: TransformerEnergy, x: Tensor, num_steps: int) -> None:
    """A few steps by finite differences, so that no weight is where it began."""
    objective = objectives()["finite differences, fused"]
    step, optimizer = step_of(objective, energy, x), torch.optim.Adam(energy.parameters(), lr=1e-3)
    for _ in range(num_steps):
        for p, g in zip(energy.parameters(), step(), strict=True):
            p.grad = g
        optimizer.step()


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Of two gradients, in float64."""
    one, other = (torch.cat([g.flatten().double() for g in grads]) for grads in (a, b))
    return float(one @ other / (one.norm() * other.norm()))


def resident(name: str) -> float:
    """VmRSS, the resident set of this process, or VmHWM, its peak, in MB (`ru_maxrss` of a child has its parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def memory(options: argparse.Namespace, length: int, name: str) -> float:
    """The peak of a step over what was there before, in MB, in a process of its own."""
    more = [f"--{key}={getattr(options, key)}" for key in ("width", "depth", "heads")]
    command = [sys.executable, __file__, "--lengths", str(length), "--memory-of", name, *more]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(options: argparse.Namespace, length: int) -> list[dict[str, Any]]:
    """The rows of one length."""
    energy, x = energy_of(options, length), rows_of(length)
    train(energy, x, options.steps)
    steps = {name: step_of(objective, energy, x) for name, objective in objectives().items()}
    grads = {name: step() for name, step in steps.items()}
    times = in_turns(steps, options.rounds, torch.get_num_threads())
    first, second, _ = steps
    found = []
    for name in steps:
        row = {"length": length, "rows": len(x), "step": name, "seconds": times.medians(name)[2]}
        row |= {"megabytes": memory(options, length, name), "faster": times.ratio(first, name)}
        row["cosine"] = cosine(grads[first], grads[name]) if name in (first, second) else None
        found.append(row)
    for row in found:
        row["less memory"] = found[0]["megabytes"] / row["megabytes"]
    return found


def main() -> int:
    """Print the table, or the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of training before the comparison")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(objectives()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.memory_of:
        (length,) = options.lengths
        step = step_of(objectives()[options.memory_of], energy_of(options, length), rows_of(length))
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak so far is forgotten
        before = resident("VmRSS")
        step()
        print(resident("VmHWM") - before)
        return 0
    if not options.json:
        print("| length | rows | step | seconds | times as fast | MB | of the memory | cosine |")
        print("|---|---|---|---|---|---|---|---|")
    found = []
    for length in options.lengths:
        rows = compare(options, length)
        found += rows
        for row in () if options.json else rows:
            same = "" if row["cosine"] is None else f"{row['cosine']:.6f}"
            print(
                f"| {length} | {row['rows']} | {row['step']} | {row['seconds']:.3f} | {row['faster']:.2f} "
                f"| {row['megabytes']:.0f} | 1/{row['less memory']:.1f} | {same} |",
                flush=True,
            )
    if options.json:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": found}))
    return 0 if all(row["cosine"] is None or row["cosine"] >= WANTED for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
