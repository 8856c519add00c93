"""Three claims about speed that articles repeat, measured on this machine; the tables of docs/experiments/claims.md.

    python benchmarks/claims.py bf16                            # mixed precision doubles the speed of sampling
    python benchmarks/claims.py schedule --json plane.jsonl     # a chain length growing 1 -> 30 halves training time
    python benchmarks/claims.py digits --data FOLDER            # the same on digits; FOLDER holds mnist.npz
    python benchmarks/claims.py compile                         # torch.compile gives 30 %

One thread, CPU time. Contenders take turns in one process, and ratios are medians of the rounds' own ratios: above 1 is
slower than the row they are compared with. First calls are timed with an empty cache on disk. `bf16` also measures what
the rougher network does to a chain's law. `--nets`, `--rounds`, `--batch` as in chain.py.
"""

import argparse
import copy
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import claims_training as training
import torch
from torch import Tensor, nn

from thalweg.bench import chains as speed
from thalweg.core.rng import generator
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.sampler.chain import run_chain, transitions
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.precision import at_precision

ULA_ = ULA(step_size=speed.STEP, temperature=speed.NOISE**2 / (2 * speed.STEP))
Job = Callable[[], Any]


def start_of(net: str, batch: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    energy = speed.NETS[net]()
    return energy, torch.rand(batch, *energy.shape, generator=generator(0, "speed"))


@contextmanager
def tutorial(net: nn.Module, x: Tensor, num: int, bf16: bool = False) -> Iterator[Job]:
    """The hand-written loop, under autocast or not; the network may be compiled."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        yield lambda: speed.tutorial(net, x, num)


@contextmanager
def engine(context: Any, x: Tensor, num: int, bf16: bool = False) -> Iterator[Job]:
    """The package's own loop on an energy that a context holds."""
    with context as energy, at_precision(energy, ULA_, x, bf16) as precise:
        yield lambda: walk(ULA_, precise, x, num)


@contextmanager
def chain(net: nn.Module, x: Tensor, num: int, compile: bool = False) -> Iterator[Job]:
    """`run_chain` as callers have it."""
    yield lambda: run_chain(ULA_, net, x, num_steps=num, compile=compile)


def walk(sampler: Any, energy: Any, x: Tensor, num: int, seed: int = 0) -> Any:
    """The last state of a chain, and the mean acceptance on its way."""
    steps = itertools.islice(transitions(sampler, energy, x, generator(seed, "claims")), num)
    state, taken = None, torch.zeros(())
    for state, info in steps:  # noqa: B007
        taken = taken + info.acceptance.mean()
    return state, taken.item() / num


def turns(
    contexts: dict[str, Callable[[], Any]], num: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds a step, round by round, and CPU seconds of the first job of each, which no round counts."""
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    first: dict[str, float] = {}
    for i in range(rounds + 1):
        for name, context in contexts.items():
            with context() as job:
                if i:  # folded weights and caches of a context are there before the clock starts
                    job()
                start = time.process_time()
                job()
                used = time.process_time() - start
            if i:
                seconds[name].append(used / num)
            else:
                first[name] = used
    return seconds, first


def ratio(seconds: dict[str, list[float]], name: str, beside: str) -> float:
    return median(a / b for a, b in zip(seconds[name], seconds[beside], strict=True))


def compile_claim(args: argparse.Namespace) -> None:
    """Eager and compiled, of a tutorial's loop and of the engine."""
    print("| net | loop | eager, ms | compiled, ms | compiled / eager | first call, s | repaid after, steps |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for net in args.nets:
        energy, x = start_of(net, args.batch)
        num, own = speed.STEPS[net], [copy.deepcopy(energy) for _ in range(4)]
        fast = torch.compile(own[1])
        contexts = {
            "tutorial": lambda own=own, x=x, num=num: tutorial(own[0], x, num),
            "tutorial compiled": lambda fast=fast, x=x, num=num: tutorial(fast, x, num),
            "engine": lambda own=own, x=x, num=num: chain(own[2], x, num),
            "engine compiled": lambda own=own, x=x, num=num: chain(own[3], x, num, compile=True),
        }
        seconds, first = turns(contexts, num, args.rounds)
        for loop in ("tutorial", "engine"):
            plain, quick = median(seconds[loop]), median(seconds[f"{loop} compiled"])
            extra = first[f"{loop} compiled"] - num * quick
            saved = plain * (1 - ratio(seconds, f"{loop} compiled", loop))
            repaid = f"{extra / saved:,.0f}" if saved > 0 else "never"
            share = f"{ratio(seconds, f'{loop} compiled', loop):.2f}"
            cells = (net, loop, f"{1e3 * plain:.3g}", f"{1e3 * quick:.3g}", share, f"{extra:.1f}", repaid)
            print(training.line(*cells), flush=True)


def bf16_claim(args: argparse.Namespace) -> None:
    """Times in both precisions, of a tutorial's loop under autocast and of the engine; then what it does to a law."""
    print("| net | loop | fp32, ms | bf16, ms | bf16 / fp32 |\n|---|---|---:|---:|---:|")
    for net in args.nets:
        energy, x = start_of(net, args.batch)
        num, own = max(1, speed.STEPS[net] // 8), [copy.deepcopy(energy) for _ in range(4)]
        contexts = {}
        for i, bf16 in enumerate((False, True)):
            contexts[f"tutorial {bf16}"] = lambda own=own, x=x, num=num, i=i, b=bf16: tutorial(own[i], x, num, b)
            contexts[f"engine {bf16}"] = lambda own=own, x=x, num=num, i=i, b=bf16: engine(
                FrozenEnergy.of(own[2 + i]), x, num, b
            )
        seconds, _ = turns(contexts, num, args.rounds)
        for loop in ("tutorial", "engine"):
            times = [f"{1e3 * median(seconds[f'{loop} {bf16}']):.3g}" for bf16 in (False, True)]
            share = f"{ratio(seconds, f'{loop} True', f'{loop} False'):.1f}"
            print(training.line(net, loop, *times, share), flush=True)
    print("\n" + bias(args.chains))


def bias(chains: int) -> str:
    """A perceptron trained on eight Gaussians, chains in its law: what they say of it after 300 steps more.

    Every chain has the same starts and noise, so that differences from the row of float32 have small errors.
    """
    energy = training.small_run("eight-gaussians", 800)
    x = torch.randn(chains, 2, generator=generator(0, "bias"))
    heads = ("chain", "network", "acceptance", "mean E, nats", "mean |x|²", "difference in mean E from fp32")
    lines = [training.line(*heads), "|---" * len(heads) + "|"]
    with FrozenEnergy.of(energy) as fixed:
        x = walk(MALA(step_size=0.02), fixed, x, 1500)[0].x
        for sampler in (MALA(step_size=0.02), ULA(step_size=0.02)):
            base = None
            for name, kind, bf16 in (
                ("fp32", sampler, False),
                ("bf16", sampler, True),
                ("bf16, energies too", ULA_, True),
            ):
                if name == "bf16, energies too" and isinstance(sampler, ULA):
                    continue  # it reads none
                with at_precision(fixed, kind, x, bf16) as precise:
                    state, acceptance = walk(sampler, precise, x, 300, seed=1)
                with torch.no_grad():
                    u = fixed(state.x)
                base = u if base is None else base
                cells = (with_error(u), with_error(state.x.square().sum(1)), with_error(u - base))
                lines.append(training.line(type(sampler).__name__, name, f"{acceptance:.4f}", *cells))
    return "\n".join(lines)


def with_error(values: Tensor) -> str:
    return f"{values.mean().item():.4f} ± {values.std().item() / len(values) ** 0.5:.4f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    claims = parser.add_subparsers(required=True)
    for name, run in (("bf16", bf16_claim), ("compile", compile_claim)):
        own = claims.add_parser(name)
        own.set_defaults(run=run)
        own.add_argument("--nets", nargs="+", choices=list(speed.NETS), default=list(speed.NETS))
        own.add_argument("--batch", type=int, default=64)
        own.add_argument("--rounds", type=int, default=5)
        own.add_argument("--chains", type=int, default=20_000, help="for what bf16 does to a law")
    plane = claims.add_parser("schedule", help="chain lengths, points in the plane")
    plane.set_defaults(run=training.schedule)
    plane.add_argument("--seeds", type=int, default=3)
    plane.add_argument("--steps", type=int, default=1200)
    plane.add_argument("--sets", nargs="+", default=["eight-gaussians", "two-moons"])
    plane.add_argument("--json", type=Path, help="add every row to this file, and go on with what it has")
    pictures = claims.add_parser("digits", help="chain lengths, digits")
    pictures.set_defaults(run=training.digits)
    pictures.add_argument("--data", type=Path, required=True)
    pictures.add_argument("--steps", type=int, default=500)
    pictures.add_argument("--seed", type=int, default=0)
    pictures.add_argument("--num", type=int, default=200, help="chains, and digits to compare them with")
    pictures.add_argument("--chain-steps", type=int, default=500)
    for each in (plane, pictures):
        each.add_argument("--arms", nargs="+", choices=list(training.ARMS), default=list(training.ARMS))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    fresh = tempfile.TemporaryDirectory() if args.run is compile_claim else nullcontext()
    with fresh as folder:
        if folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        args.run(args)


if __name__ == "__main__":
    main()
